"""Writes what nobody should: garbage in the agents' place, record batches that nobody can read, open transactions."""

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from confluent_kafka import KafkaException, Producer

from tests.chaos.brokers import Brokers
from tests.chaos.garbage import Content, Target, garbage
from tests.chaos.records import HOSTILE_HEADER, NUMBER_HEADER, Sent
from tests.helpers.batches import damage_batch, produce_batch, record_batch, with_payload
from tests.helpers.waiting import seconds_until

FIRST_NUMBER = 1_000_000_000
"""Above the numbers of all inputs."""
FLUSH_S = 300.0
BOMB_BYTES = 140_000_000
"""More than any client of the pipeline takes, from 14 kB."""
READABLE_BOMB_BYTES = 12_000_000
"""More than a dead letter repeats, and little enough to be read."""
TRANSACTION_S = 60
MOST_WAITING_S = 90.0
POLL_S = 0.2
AGE_SHOWS_S = 3.0
"""An age from which it is clear that a partition waits."""
BATCH_RECORDS = 3
HEADER_BYTES = 61

Ages = Callable[[str, int], float | None]
"""The age of the oldest undecided record of a partition, as the workers' metrics have it; None: nobody says."""


def _bomb() -> bytes:
    return record_batch([b"a" * BOMB_BYTES], "zstd")


def _leftover() -> bytes:
    batch = record_batch([b"a" * 200] * BATCH_RECORDS, "lz4")
    return with_payload(batch, batch[HEADER_BYTES:] + bytes(20), "lz4")


BOMBS: tuple[tuple[str, Callable[[], bytes], int], ...] = (
    ("zstd bomb", _bomb, 1),
    ("lz4 with more behind it", _leftover, BATCH_RECORDS),
)
"""Kinds of batches that brokers take and no client can decompress, with the number of their records."""


class Hostile:
    """Writes to the topics of one run, and keeps a ledger of it; used from the run's thread."""

    def __init__(self, brokers: Brokers, prefix: str, partitions: Mapping[str, int]) -> None:
        """``partitions`` has the number of partitions by topic."""
        self._brokers, self._bootstrap = brokers, brokers.bootstrap_servers
        self._prefix, self._partitions = prefix, partitions
        self._producer: Producer | None = None
        self._rounds = self._batches = 0
        self._threads: list[threading.Thread] = []
        self.sent: list[Sent] = []
        self.good: Content | None = None
        """A policy that was published in earnest; without one there is nothing to forge."""
        self.ends: dict[tuple[str, int], int] = {}
        """Offsets behind what was written to topics that the producers write."""

    def garbage(self, ends: Mapping[tuple[str, int], int]) -> str | None:
        """Write all kinds to all topics of the agents; None: there is nothing to forge yet."""
        if self.good is None:
            return None
        self._rounds += 1
        ones = list(garbage(Target(self.good, ends), self._rounds))
        acknowledged: dict[int, int] = {}
        producer, first, now_ms = self._writer(), FIRST_NUMBER + len(self.sent), int(time.time() * 1e3)
        drafts = []
        for number, record in enumerate(ones, first):
            partition = (number + self._rounds) % self._partitions[record.topic]
            draft = Sent(
                number,
                record.topic,
                partition,
                now_ms,
                record.key,
                record.value,
                f"hostile: {record.kind}",
                record.dead,
            )
            drafts.append(draft._replace(hostile=True, agents=record.agents))
            producer.produce(
                self._prefix + record.topic,
                record.value,
                record.key,
                partition=partition,
                timestamp=now_ms,
                headers=[(HOSTILE_HEADER, str(number).encode())],
                on_delivery=_noting(acknowledged, number),
            )
        if producer.flush(FLUSH_S) or len(acknowledged) != len(drafts):
            raise RuntimeError(f"{len(drafts) - len(acknowledged)} hostile records were not delivered")
        self.sent += [draft._replace(offset=acknowledged[draft.number]) for draft in drafts]
        return f"{len(drafts)} records on {len({draft.topic for draft in drafts})} topics"

    def bomb(self, draw: float, clock_ms: int) -> str:
        """Write a batch that nobody can decompress to each topic of the producers, and a large one that can be read."""
        reported = []
        for topic in ("transactions", "labels"):
            kind, make, records = BOMBS[self._batches % len(BOMBS)]
            self._batches += 1
            partition = int(draw * 1e3 + self._batches) % self._partitions[topic]
            self._range(kind, topic, partition, make(), records)
            reported.append(f"{kind} on {topic} {partition}")
        number, partition = FIRST_NUMBER + len(self.sent), self._batches % self._partitions["transactions"]
        value, headers = b"a" * READABLE_BOMB_BYTES, [(NUMBER_HEADER, str(number).encode())]
        batch = record_batch([value], "gzip", key=b"bomb", timestamp_ms=clock_ms, headers=headers)
        base = self._produce("transactions", partition, batch)
        self._note("transactions", partition, base + 1)
        self.sent.append(
            Sent(number, "transactions", partition, clock_ms, b"bomb", value, "gzip bomb", "too_large", offset=base)
        )
        return ", ".join([*reported, f"gzip bomb on transactions {partition}"])

    def damage(self, draw: float) -> str:
        """Write a batch, and damage it on the broker's disk; no worker may run, or it could read it before.

        Its records are as long as those of others: librdkafka, by which the log is checked, goes on in the middle of
        one, and meets text there. In a batch of a hundred bytes it may meet a header, and abort each time.

        A broker that was killed would cut its log off there, so that none may be killed later.
        """
        topic = ("transactions", "labels")[int(draw * 1e3) % 2]
        partition = int(draw * 1e6) % self._partitions[topic]
        base = self._range("damaged batch", topic, partition, record_batch([b"within" * 50] * 5), 5)
        log_dir = self._brokers.leader(self._prefix + topic, partition).data_dir / "log"
        damage_batch(log_dir, self._prefix + topic, partition, base)
        return f"{topic} {partition} offset {base}"

    def leave_open(self, draw: float, length_s: float, ages: Ages, done: Callable[[bool], None]) -> str:
        """Hold a partition of ``transactions`` with an open transaction until its age shows, then abort it.

        ``done`` is told, on another thread, whether the age was seen to grow and to fall.
        """
        partition = int(draw * 1e3) % self._partitions["transactions"]
        transaction = _Open(self._bootstrap, self._prefix + "transactions", partition)

        def came(holds: Callable[[], bool]) -> bool:
            return seconds_until(holds, MOST_WAITING_S, POLL_S) is not None

        def watch() -> None:
            try:
                time.sleep(length_s)
                grew = came(lambda: (ages("transactions", partition) or 0.0) > AGE_SHOWS_S)
            finally:
                transaction.abort()
            done(grew and came(lambda: (age := ages("transactions", partition)) is not None and age < AGE_SHOWS_S))

        thread = threading.Thread(target=watch, name="open-transaction", daemon=True)
        thread.start()
        self._threads.append(thread)
        return f"on transactions {partition}"

    def finish(self) -> None:
        """Wait until no transaction is open any more."""
        for thread in self._threads:
            thread.join()

    def _range(self, kind: str, topic: str, partition: int, batch: bytes, records: int) -> int:
        base = self._produce(topic, partition, batch)
        self._note(topic, partition, base + records)
        agents = ("card",) if topic == "transactions" else ("label",)
        number = FIRST_NUMBER + len(self.sent)
        item = Sent(number, topic, partition, 0, None, None, kind, "unreadable")
        self.sent.append(item._replace(hostile=True, agents=agents, offset=base, end=base + records))
        return base

    def _produce(self, topic: str, partition: int, batch: bytes) -> int:
        name = self._prefix + topic
        return produce_batch(self._brokers.leader(name, partition).bootstrap_servers, name, partition, batch)

    def _note(self, topic: str, partition: int, end: int) -> None:
        self.ends[topic, partition] = max(end, self.ends.get((topic, partition), 0))

    def _writer(self) -> Producer:
        if self._producer is None:
            self._producer = Producer(
                {
                    "bootstrap.servers": self._bootstrap,
                    "enable.idempotence": True,
                    "max.in.flight.requests.per.connection": 1,
                    "message.timeout.ms": 0,
                    "error_cb": lambda _error: None,
                    "log_level": 0,
                }
            )
        return self._producer


class _Open:
    """A transaction that holds one partition; aborted by `abort`, or by the broker some time later."""

    _number = 0

    def __init__(self, bootstrap: str, topic: str, partition: int) -> None:
        _Open._number += 1
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "transactional.id": f"chaos-foreign-{topic}-{_Open._number}",
                "transaction.timeout.ms": TRANSACTION_S * 1_000,
                "error_cb": lambda _error: None,
                "log_level": 0,
            }
        )
        self._producer.init_transactions(FLUSH_S)
        self._producer.begin_transaction()
        self._producer.produce(topic, b'{"held":"back"}', b"foreign", partition=partition)
        self._producer.flush(FLUSH_S)

    def abort(self) -> None:
        """Give it up; a broker that cannot be asked aborts it by itself."""
        with suppress(KafkaException):
            self._producer.abort_transaction(FLUSH_S)


def _noting(acknowledged: dict[int, int], number: int) -> Callable[[Any, Any], None]:
    def note(error: Any, message: Any) -> None:
        if error is None:
            acknowledged[number] = message.offset()

    return note
