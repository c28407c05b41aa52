"""Records and batches: what readers hand over, and the bytes in which brokers store them."""
