"""The service that renews models: challengers, the gate before a promotion, the guard after it, and rollbacks."""
