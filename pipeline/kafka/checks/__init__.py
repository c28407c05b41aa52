"""Checks of a cluster and of offsets, before and while partitions are worked on."""
