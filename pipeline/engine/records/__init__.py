"""Records as columns: what is accepted, forwarded, and written by a batch."""
