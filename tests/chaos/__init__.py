"""Faults on purpose under load, and an independent proof afterwards that nothing was lost, doubled or changed."""
