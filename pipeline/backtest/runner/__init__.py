"""Runs a validated request: passes over the history, statistics and results."""
