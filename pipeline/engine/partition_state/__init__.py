"""The state of a partition and its parts, and the ports under which an adapter keeps it."""
