"""A cluster: clients and their errors, topics, offsets, and access rules."""
