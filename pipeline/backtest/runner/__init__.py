"""From a validated request to decisions: passes over the history, statistics and results."""
