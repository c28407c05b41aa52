"""Metrics of decisions: ranking, cost, drift, and confidence intervals."""
