"""What devices and tier servers say to each other: the Open Inference Protocol v2, and what dimec adds to it."""
