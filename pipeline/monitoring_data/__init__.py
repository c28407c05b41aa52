"""Inputs of drift detection and of audits, read from topics or exported files."""
