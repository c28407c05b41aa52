"""The Faust app: agents on batches of records. Start reading at ``agents/topology.py``."""
