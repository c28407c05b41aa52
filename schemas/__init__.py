"""The wire contract: one frozen struct per message type, the topics that carry them, and the codec."""
