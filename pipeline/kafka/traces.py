"""Whether results of an agent stand in the topics that it writes: what tells lost offsets from a first start."""

from contextlib import closing
from typing import Final

import msgspec
from confluent_kafka import IsolationLevel

from pipeline.kafka.clients import admin_client, last_offsets, partition_numbers, read_batches
from pipeline.settings import Settings
from schemas.messages import Progress
from schemas.topics import DECISIONS, PROGRESS, Topic

TRACE_RECORDS: Final = 2_000
"""Records at either end of a partition in which a trace is looked for."""


class _Log(msgspec.Struct, frozen=True):
    partition: int


class _Decided(msgspec.Struct, frozen=True):
    """As much of a decision as tells which partition of `profiled` it came from."""

    log: _Log


_decode_progress = msgspec.json.Decoder(Progress).decode
_decode_decided = msgspec.json.Decoder(_Decided).decode


def any_record(bootstrap: str, topic: Topic, settings: Settings) -> bool:
    """Whether ``topic`` holds a committed record; what aborted transactions left is none."""
    with closing(read_batches(bootstrap, settings.topic(topic.name), settings=settings)) as batches:
        return next(batches, None) is not None


def holds_trace(bootstrap: str, agent: str, partition: tuple[str, int], settings: Settings) -> bool:
    """Whether results tell that ``agent`` has read of ``partition`` (full topic name, number).

    Looks at both ends of the topics, so a trace in the middle only is not found; ``False`` for an agent whose results
    do not name where they come from.
    """
    topic, number = partition
    name = topic.removeprefix(settings.topic_prefix)
    if agent == "score":
        decided = (_decode_decided(value) for value in _ends(bootstrap, DECISIONS, None, b"", settings))
        return any(decision.log.partition == number for decision in decided)
    told = (_decode_progress(value) for value in _ends(bootstrap, PROGRESS, number, agent.encode(), settings))
    return any(name in progress.ends for progress in told)


def _ends(bootstrap: str, topic: Topic, partition: int | None, key: bytes, settings: Settings) -> list[bytes]:
    """Values under ``key`` (any, where it is empty) at both ends of a topic, or of one partition of it."""
    name = settings.topic(topic.name)
    client = admin_client(bootstrap, settings=settings)
    numbers = partition_numbers(client, name)
    values: list[bytes] = []
    for number in numbers if partition is None else [partition]:
        end = last_offsets(client, [(name, number)], IsolationLevel.READ_COMMITTED)[name, number]
        for start in {0, max(0, end - TRACE_RECORDS)}:
            reading = read_batches(bootstrap, name, settings=settings, partitions=[number], start={number: start})
            with closing(reading) as batches:
                for records in batches:
                    values += [r.value for r in records if r.value is not None and key in (b"", r.key)]
                    if records[-1].offset >= start + TRACE_RECORDS:
                        break
    return values
