"""Writers: producers, and the transactions of a session."""
