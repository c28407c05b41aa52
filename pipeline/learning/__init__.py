"""The meaning of labels, and the choice of examples."""
