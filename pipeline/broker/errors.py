"""The errors of the embedded broker."""

from typing import Final

INSTALL: Final = (
    "install the embedded broker (pip install 'fraud-pipeline[broker]'), or set KAFKA_BOOTSTRAP_SERVERS to a Kafka "
    "cluster"
)
"""The advice given where a part of the embedded broker is missing."""


class BrokerError(RuntimeError):
    """The embedded broker cannot start or has died; the text says why and what to do."""


class BrokerInUse(BrokerError):
    """Another process holds the data directory."""
