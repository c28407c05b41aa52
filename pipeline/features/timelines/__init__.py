"""Timelines of events and labels by entity, in flat arrays that compiled functions read and write."""
