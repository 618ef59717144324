"""A corpus of any size, labelled by a bundle: on this machine, or on many by Ray."""
