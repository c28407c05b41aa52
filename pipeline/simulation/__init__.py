"""Simulated card transactions."""
