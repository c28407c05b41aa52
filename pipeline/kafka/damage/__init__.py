"""Record batches with a wrong checksum: where they end, and which brokers may hold them whole."""
