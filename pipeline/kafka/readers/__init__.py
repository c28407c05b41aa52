"""Readers: of a group, of whole topics, of ranges, and of what is not decided yet."""
