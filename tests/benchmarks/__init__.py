"""Measurements that a person starts; none of them is a test."""
