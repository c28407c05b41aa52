"""The Faust app: agents on librdkafka batch channels. Start reading at ``agents/topology.py``."""
