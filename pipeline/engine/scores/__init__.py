"""The score agent's kernel: features by merchant, scores, decisions and alerts."""
