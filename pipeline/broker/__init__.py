"""A real single-node Apache Kafka, from pip packages alone."""

from pipeline.broker.local import running_broker
from pipeline.broker.node import EmbeddedBroker, embedded_broker
from pipeline.broker.process import BrokerError
from pipeline.broker.provided import ProvidedBroker, provide_broker

__all__ = [
    "BrokerError",
    "EmbeddedBroker",
    "ProvidedBroker",
    "embedded_broker",
    "provide_broker",
    "running_broker",
]
