"""Files of transactions, and the canonical columns of a frame of them."""
