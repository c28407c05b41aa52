"""The session of an agent: partitions come and go, batches are read and committed with their outputs."""
