"""Exact event-time windows and the features made of them. Pure: no Kafka, no files, no clock."""
