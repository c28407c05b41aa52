"""Rules on history: what one would have hit, and how good that would have been."""
