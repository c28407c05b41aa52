"""Webhooks: new cases and stopped rules, sent to an URL."""
