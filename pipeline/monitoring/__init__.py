"""Drift of what models see and decide, and what an audit sample says about frauds that nobody reports."""
