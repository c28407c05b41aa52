"""Texts and blocks: bytes to columns, and columns to bytes, by compiled code."""
