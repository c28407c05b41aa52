"""Sends a ledger at an even pace, whatever happens to the broker meanwhile."""

import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from confluent_kafka import Producer

from tests.chaos.records import NUMBER_HEADER, Sent

FLUSH_S = 300.0
TICK_S = 0.02


class Feeder:
    """A thread that sends ``ledger`` within ``seconds`` from `start` on."""

    def __init__(self, bootstrap: str, prefix: str, ledger: Sequence[Sent], seconds: float) -> None:
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "enable.idempotence": True,
                # As `pipeline.kafka.writers.producer.RecordProducer`: times are simulated here too.
                "max.in.flight.requests.per.connection": 1,
                "linger.ms": 5,
                "compression.type": "lz4",  # a topic takes no value that is too large in any other way
                "message.max.bytes": 4 * 1024 * 1024,
                "queue.buffering.max.messages": 1_000_000,
                "queue.buffering.max.kbytes": 1024 * 1024,
                "message.timeout.ms": 0,
                "error_cb": lambda _error: None,
                "log_level": 0,  # a broker that is away is what the run is about
            }
        )
        self._prefix, self._ledger, self._seconds = prefix, ledger, seconds
        self._thread = threading.Thread(target=self._run, name="feeder", daemon=True)
        self._stopped = threading.Event()
        self._failed: list[str] = []
        self.sent = 0
        """How many were handed to the client."""
        self.limit = len(ledger)
        """Return the number that may be sent so far."""
        self.ended_s = math.inf
        """When (monotonic) everything was sent."""
        self.ends: dict[tuple[str, int], int] = {}
        """Offsets behind what was acknowledged, by topic without prefix and partition."""

    def send_first(self, count: int) -> None:
        """Send a few at once, which tell when the pipeline works."""
        for sent in self._ledger[:count]:
            self._send(sent)
        self.sent = min(count, len(self._ledger))
        self._producer.flush(FLUSH_S)

    def start(self) -> None:
        """Begin with the rest."""
        self._thread.start()

    @property
    def clock_ms(self) -> int:
        """The simulated clock: the timestamp of what was sent last."""
        return self._ledger[max(0, self.sent - 1)].timestamp_ms

    @property
    def done(self) -> bool:
        """Whether everything was sent and acknowledged, or failed."""
        return not self._thread.is_alive()

    def finish(self) -> None:
        """Wait for the end; raises ``RuntimeError`` when something was not delivered."""
        self._thread.join()
        if self._failed:
            raise RuntimeError(f"{len(self._failed)} inputs were not delivered: {self._failed[:3]}")

    def stop(self) -> None:
        """Send nothing more."""
        self._stopped.set()

    def _run(self) -> None:
        started_s, first = time.monotonic(), self.sent
        while self.sent < len(self._ledger) and not self._stopped.is_set():
            due = first + (len(self._ledger) - first) * (time.monotonic() - started_s) / self._seconds
            while self.sent < min(due, self.limit):
                self._send(self._ledger[self.sent])
                self.sent += 1
            self._producer.poll(TICK_S)
        self.ended_s = time.monotonic()
        if left := self._producer.flush(FLUSH_S):
            self._failed.append(f"{left} are still waiting for the broker")

    def _send(self, sent: Sent) -> None:
        report: Callable[[Any, Any], None] = self._delivered
        self._producer.produce(
            self._prefix + sent.topic,
            sent.value,
            sent.key,
            partition=sent.partition,
            timestamp=sent.timestamp_ms,
            headers=[(NUMBER_HEADER, str(sent.number).encode())],
            on_delivery=report,
        )

    def _delivered(self, error: Any, message: Any) -> None:
        if error is not None:
            self._failed.append(str(error))
        else:
            at = message.topic().removeprefix(self._prefix), message.partition()
            self.ends[at] = max(message.offset() + 1, self.ends.get(at, 0))
