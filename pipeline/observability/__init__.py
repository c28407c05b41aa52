"""Metrics, health and their HTTP endpoint, for Prometheus and for whoever runs a worker."""
