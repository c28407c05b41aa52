"""A producer that has ended says why, also where the client has lost the error that it raised."""

import logging
from collections.abc import Callable

import pytest

from pipeline.kafka.writers.producer import DeliveryFailed, RecordProducer
from pipeline.settings import Settings

ENDED = "Fatal error: Broker: Cluster authorization failed: Failed to acquire idempotence PID"


def lost(producer: RecordProducer, level: int) -> Callable[[float], int]:
    """Return a call of the client that logs ``ENDED`` and loses its exception."""

    def call(_timeout_s: float) -> int:
        producer._last_words.log(level, "%s [%s] %s", "FATAL", "fraud-pipeline", ENDED)
        raise SystemError("<built-in method flush> returned NULL without setting an exception")

    return call


def test_a_lost_error_is_read_from_the_clients_last_words() -> None:
    producer = RecordProducer("127.0.0.1:1", Settings())
    with pytest.raises(DeliveryFailed, match=r"records were not written.*authorization failed.*lacks a right"):
        producer._serve(lost(producer, logging.CRITICAL), 0.0)


def test_another_error_of_python_stays_one() -> None:
    producer = RecordProducer("127.0.0.1:1", Settings())
    with pytest.raises(SystemError, match="returned NULL"):
        producer._serve(lost(producer, logging.WARNING), 0.0)
