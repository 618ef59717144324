"""The run folder: its configuration, exit tables, exit zero and learned bottlenecks."""
