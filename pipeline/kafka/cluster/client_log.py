"""The logs of the Kafka clients: a complaint that repeats is logged once in a while."""

import logging
import time
from typing import Final

from confluent_kafka import KafkaError, KafkaException

librdkafka_log = logging.getLogger("pipeline.kafka.librdkafka")

REPEAT_S: Final = 10.0
"""Seconds for which a complaint of one kind is not logged again: a broker that is away is tried many times a second."""


class OncePerWhile(logging.Filter):
    """Lets the first of several records of one kind through, then one every ``REPEAT_S``.

    The kind is the first word of librdkafka's own lines, and the code of an error that a callback reports.
    """

    def __init__(self) -> None:
        super().__init__()
        self._logged_s: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return True if ``record`` is logged."""
        kind = getattr(record, "kafka_error", None) or record.getMessage().partition(" ")[0]
        now_s = time.monotonic()
        if now_s - self._logged_s.get(kind, -REPEAT_S) < REPEAT_S:
            return False
        self._logged_s[kind] = now_s
        return True


librdkafka_log.addFilter(OncePerWhile())
errors_log = logging.getLogger("pipeline.kafka.cluster.errors")
errors_log.addFilter(OncePerWhile())


def _log_client_error(error: KafkaError, what_next: str) -> None:
    errors_log.warning(
        "Kafka client: %s (%s)%s", error.str(), error.name(), what_next, extra={"kafka_error": error.name()}
    )


def log_error(error: KafkaError) -> None:
    """Error callback: logs what librdkafka recovers from by itself, raises ``KafkaException`` for what it does not.

    The exception leaves the ``poll``, ``consume`` or ``flush`` that served the callback.
    """
    if error.fatal():
        raise KafkaException(error)
    _log_client_error(error, "; retrying")


def log_error_only(error: KafkaError) -> None:
    """Error callback of clients whose calls report their own failures."""
    _log_client_error(error, "")
