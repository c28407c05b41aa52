"""The card agent's kernel: features by card, repeats, and labels that follow their transactions."""
