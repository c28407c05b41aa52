"""The two hops, a process of its own: ``python -m tests.benchmarks.two_hops WAY``, with a worker's settings.

It reads and writes the pipeline's topics, exactly once, in records of the pipeline's sizes, and computes nothing. Both
hops are threads of one process, as a worker's agents are. There are three ways, with the same records and batches:

- ``raw``: the fixed `RawTransactions`, on batches that librdkafka reads.
- ``writer``: the pipeline's writer with the transaction client of the settings, on batches that librdkafka reads.
- ``session``: the pipeline's session, which reads and writes as an agent does.
"""

import gc
import os
import sys
import threading
import traceback
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import msgspec
import numpy as np
from confluent_kafka import Consumer, TopicPartition

from pipeline.kafka.cluster.clients import consumer_config
from pipeline.kafka.session.session import Session
from pipeline.kafka.session.state_handler import Stateless
from pipeline.kafka.writers.transactional_producers import TransactionalProducers
from pipeline.kafka.writers.transactions import TransactionalWriter
from pipeline.settings import Settings
from schemas.records import Output
from schemas.topics import DECISION_FEATURES, DECISIONS, PROFILED, PROGRESS, TRANSACTIONS, Topic
from tests.benchmarks.two_hops.raw_writer import RawTransactions

ROW_BYTES, DECISION_BYTES, FEATURES_BYTES, PROGRESS_BYTES, MARK_BYTES = 400, 880, 738, 250, 60
"""Bytes of the pipeline's records: a row of `profiled`, a decision, a row of `features`, a record of `progress`, and
the text beside an offset."""
GC_THRESHOLDS, SWITCH_S = (100_000, 20, 100), 0.0005
"""Properties that workers have too."""
POLL_S: Final = 0.1
_FILL: Final = np.random.default_rng(1).integers(0, 16, 1 << 16).astype(np.uint8)
FILL: Final = bytes(b"0123456789abcdef"[digit] for digit in _FILL)
"""Filling of records: random digits, which compressors halve."""

Rows = Sequence[tuple[int, bytes]]
"""Records of a batch: partition number and value."""
Step = Callable[[Rows], list[Output]]


class Transaction(msgspec.Struct, gc=False):
    """Fields that the chain takes from a transaction."""

    transaction_id: str
    merchant_id: str


_transaction = msgspec.json.Decoder(Transaction).decode


def filled(head: bytes, size: int, tail: bytes = b"") -> bytes:
    """Return ``head`` filled up to ``size`` bytes, before ``tail``."""
    left = size - len(head) - len(tail)
    start = zlib.crc32(head) % (len(FILL) - left)
    return b"%b%b%b" % (head, FILL[start : start + left], tail)


def profile(rows: Rows, merchant_partitions: int) -> list[Output]:
    """Return the first hop's outputs: a block of rows for each merchant partition, a marker for each card partition."""
    blocks: dict[int, list[bytes]] = {}
    for partition, value in rows:
        found = _transaction(value)
        number = zlib.crc32(found.merchant_id.encode()) % merchant_partitions
        head = b"%d|%b|" % (partition, found.transaction_id.encode())
        blocks.setdefault(number, []).append(filled(head, ROW_BYTES))
    outputs = [Output(PROFILED, None, b"".join(block), partition=number) for number, block in blocks.items()]
    marked = {partition for partition, _ in rows}
    return outputs + [Output(PROGRESS, b"card", FILL[:PROGRESS_BYTES], partition=number) for number in marked]


def decide(rows: Rows) -> list[Output]:
    """Return the second hop's outputs: a decision for each row, and a block of features for each card partition."""
    outputs, features = list[Output](), dict[int, list[bytes]]()
    for _, block in rows:
        for start in range(0, len(block), ROW_BYTES):
            number, identity, rest = block[start : start + ROW_BYTES].split(b"|", 2)
            head = b'{"transaction_id":"%b",%b' % (identity, _DECISION)
            outputs.append(Output(DECISIONS, identity, filled(head, DECISION_BYTES, b'"}'), partition=int(number)))
            features.setdefault(int(number), []).append(filled(rest[:16], FEATURES_BYTES))
    blocks = [Output(DECISION_FEATURES, None, b"".join(block), partition=number) for number, block in features.items()]
    return outputs + blocks


_DECISION: Final = (
    b'"source":{"topic":"transactions","partition":0,"offset":0},"log":{"partition":0,"offset":0},'
    b'"ingested_at":"2026-01-01T00:00:00Z","decided_at":"2026-01-01T00:00:00Z","fill":"'
)
"""The fields of a decision that the benchmarks' reader decodes."""


def work_with(writer: Any, settings: Settings, agent: str, topic: Topic, step: Step) -> None:
    """Read batches with librdkafka, and have a writer commit what a step makes of each together with its offsets."""
    bootstrap, most, mark = settings.kafka_bootstrap_servers or "", settings.batch_max_records - 1, FILL[:MARK_BYTES]
    consumer = Consumer(consumer_config(bootstrap, settings.topic(agent), settings=settings))
    consumer.subscribe([settings.topic(topic.name)])
    while True:
        first = consumer.poll(POLL_S)
        if first is None:
            continue
        messages = [message for message in (first, *consumer.consume(most, 0)) if not message.error()]
        if not messages:
            continue
        ends = {(message.topic(), message.partition()): message.offset() + 1 for message in messages}
        offsets = [TopicPartition(*partition, end, mark.decode()) for partition, end in ends.items()]
        outputs = step([(message.partition(), message.value()) for message in messages])
        writer.commit(outputs, offsets, consumer.consumer_group_metadata())


def work_in_session(settings: Settings, agent: str, topic: Topic, step: Step) -> None:
    """Read batches and commit as an agent does."""
    session = Session(settings.kafka_bootstrap_servers or "", settings, agent, [topic], Stateless(), producers=2)
    session.start()
    while True:
        batch = session.poll(POLL_S)
        if batch is not None and batch.records:
            session.commit(batch, step([(record.partition, record.value or b"") for record in batch.records]))


class RawWriter:
    """Commits batches of one agent by two raw ids that take turns."""

    def __init__(self, settings: Settings, agent: str) -> None:
        group, self._settings = settings.topic(agent), settings
        bootstrap = settings.kafka_bootstrap_servers or ""
        self._ids = [RawTransactions(bootstrap, f"{group}-{number}", group) for number in range(2)]

    def commit(self, outputs: Sequence[Output], offsets: Sequence[TopicPartition], metadata: Any) -> None:
        """Write outputs, each of which names its partition, and offsets in one transaction."""
        records: dict[str, dict[int, list[Output]]] = {}
        for output in outputs:
            parts = records.setdefault(self._settings.topic(output.topic.name), {})
            parts.setdefault(output.partition or 0, []).append(output)
        self._ids.reverse()
        self._ids[0].commit(records, offsets)


def pipeline_writer(settings: Settings, agent: str) -> TransactionalWriter:
    """Return what an agent's session writes with."""
    stopping = threading.Event()

    def nothing() -> None:
        pass

    producers = TransactionalProducers(
        settings.kafka_bootstrap_servers or "", settings, agent,
        stopping=stopping, waiting=nothing, renewed=nothing, marks=agent == "card", producers=2,
    )  # fmt: skip
    producers.start()
    return TransactionalWriter(settings, agent, producers, stopping, nothing, dict)


def work(way: str, settings: Settings, agent: str, topic: Topic, step: Step) -> None:
    """Run a hop until something fails, which ends the process."""
    try:
        if way == "session":
            work_in_session(settings, agent, topic, step)
        writer = RawWriter(settings, agent) if way == "raw" else pipeline_writer(settings, agent)
        work_with(writer, settings, agent, topic, step)
    finally:
        traceback.print_exc()
        os._exit(1)


def main(way: str) -> None:
    """Run both hops until the process is ended."""
    settings = Settings()
    gc.set_threshold(*GC_THRESHOLDS)
    sys.setswitchinterval(SWITCH_S)
    steps = {"card": (TRANSACTIONS, partial(profile, merchant_partitions=settings.merchant_partitions))}
    for agent, (topic, step) in {**steps, "score": (PROFILED, decide)}.items():
        threading.Thread(target=work, args=(way, settings, agent, topic, step), name=agent).start()


if __name__ == "__main__":
    main(sys.argv[1])
