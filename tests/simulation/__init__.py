"""A deterministic simulation of session and engine: the real agents on a small model of Kafka."""
