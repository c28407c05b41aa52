"""Records that lay in another partition than their card's: how they are passed on, and read as what they were."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from pipeline.engine.results import Result
from schemas.records import Headers, Output, Record
from schemas.topics import REROUTED

HEADERS: Final = (
    "rerouted-topic",
    "rerouted-partition",
    "rerouted-offset",
    "rerouted-timestamp-ms",
    "rerouted-key",
)
"""Own headers, behind the producer's: where the record lay, when it arrived there, and its key (null: none)."""

_DIGITS: Final = 18
_ADVICE: Final = "only the card agent may write to this topic: send the record to its own topic instead."


class NotRerouted(ValueError):
    """A record on ``rerouted`` does not say where it lay; the text tells its sender what to do."""


def rerouted(record: Record, card_id: str, partition: int) -> Output:
    """``record`` on its way to ``partition``, as it is, with its place in its headers."""
    values = (
        record.topic.encode(),
        str(record.partition).encode(),
        str(record.offset).encode(),
        str(record.timestamp_ms).encode(),
        record.key,
    )
    own: Headers = tuple(zip(HEADERS, values, strict=True))
    return Output(REROUTED, card_id.encode("utf-8", "surrogatepass"), record.value, (*record.headers, *own), partition)


def original(record: Record, topics: tuple[str, ...]) -> Record:
    """The record that was passed on as ``record``, as it lay in one of ``topics`` (full names).

    Raises `NotRerouted` where the headers do not tell.
    """
    split = len(record.headers) - len(HEADERS)
    own = record.headers[max(split, 0) :]
    if tuple(name for name, _ in own) != HEADERS:
        raise NotRerouted(f"The record does not end in the headers {', '.join(HEADERS)}; {_ADVICE}")
    topic, *numbers, key = (value for _, value in own)
    name = (topic or b"").decode(errors="replace")
    if name not in topics:
        raise NotRerouted(f"{HEADERS[0]} is {name!r}, not one of {', '.join(topics)}; {_ADVICE}")
    if not all(number is not None and number.isdigit() and len(number) <= _DIGITS for number in numbers):
        raise NotRerouted(f"{', '.join(HEADERS[1:4])} are not all whole numbers; {_ADVICE}")
    partition, offset, timestamp_ms = (int(number or b"") for number in numbers)
    return Record(name, partition, offset, timestamp_ms, key, record.value, record.headers[:split])


class Batch(NamedTuple):
    """Records of one kind, as they lay and as they were read: the same, but for those that were passed on."""

    records: list[Record]
    reads: list[Record]


def sort(
    records: Sequence[Record], topics: tuple[str, str], rerouted_topic: str, result: Result
) -> tuple[Batch, Batch]:
    """Return the transactions and the labels of a batch.

    Args:
        records: Records of all three topics.
        topics: Full names of ``transactions`` and ``labels``.
        rerouted_topic: Full name of ``rerouted``.
        result: Gets the dead letters of what was not passed on by the card agent.

    Returns:
        Transactions and labels, each in the order of ``records``.
    """
    bought = topics[0]
    if all(record.topic == bought for record in records):
        everything = list(records)
        return Batch(everything, everything), Batch([], [])
    transactions, labels = Batch([], []), Batch([], [])
    for read in records:
        record = read
        if read.topic == rerouted_topic:
            try:
                record = original(read, topics)
            except NotRerouted as error:
                result.dead_letter(read, "card", "rerouted_headers", str(error))
                continue
        batch = transactions if record.topic == bought else labels
        batch.records.append(record)
        batch.reads.append(read)
    return transactions, labels
