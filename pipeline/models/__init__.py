"""Versions of models, policies and rate tables on the cluster: publish them, find them, follow the active ones."""
