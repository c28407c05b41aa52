"""Blocks of ``profiled`` of other kernel versions: which of them the card agent wrote.

Whoever may write to the topic can write such a block. The card agent's is known by its sources: their offsets are
committed by its group, in the transaction that wrote the block, no other block holds them, and their merchants belong
to its partition.
"""

import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import closing
from functools import cache, partial
from typing import Final, NamedTuple

import msgspec
import numpy as np
from confluent_kafka import KafkaError, KafkaException

from pipeline.engine.encoding.blocks import (
    INPUT_NAME,
    KIND,
    TRANSACTION,
    BlockError,
    Input,
    parse_block,
)
from pipeline.engine.encoding.row_columns import INPUT_OFFSET, INPUT_PARTITION, MERCHANT
from pipeline.engine.records.partitioner import partition_of
from pipeline.features.known_sets import is_known
from pipeline.kafka.checks.evidence import records_within
from pipeline.kafka.cluster.admin import committed_by_group, group_consumer
from pipeline.kafka.cluster.clients import ANSWER_S, MEMBER_ID, admin_client
from pipeline.kafka.cluster.retries import Retries, retried
from pipeline.kafka.readers.topic_reader import QUEUE_OF_BLOCKS, read_batches
from pipeline.settings import Settings
from schemas.errors import UNREADABLE
from schemas.records import Record
from schemas.topics import PROFILED, REROUTED, TRANSACTIONS

_CARD: Final = "card"
SCORE: Final = "score"
"""The agents that write and read the blocks, and so their groups' names without prefix."""
NEWEST_OFFSETS: Final = 10
LAST_OFFSETS: Final = 100
"""So many offsets before a partition's end are looked at on start: those first, these where another kernel is seen."""


class CardBlock(NamedTuple):
    """The transactions of a block."""

    partition: int
    offset: int
    timestamp_ms: int
    kernel: str
    inputs: frozenset[Input]


def card_block(record: Record, merchant_partitions: int) -> CardBlock | None:
    """Return the transactions of a block; None where there are none, or where they belong into other partitions."""
    try:
        block = parse_block(record.value)
    except BlockError:
        return None
    rows = np.flatnonzero(block.codes[KIND] == TRANSACTION)
    topics = [block.names[number].decode() for number in block.codes[INPUT_NAME, rows].tolist()]
    inputs = zip(
        topics, block.whole(INPUT_PARTITION)[rows].tolist(), block.whole(INPUT_OFFSET)[rows].tolist(), strict=True
    )
    ends, lengths = block.ends()[MERCHANT, rows].tolist(), block.lengths[MERCHANT, rows].tolist()
    merchants = {block.text[end - length : end].decode() for end, length in zip(ends, lengths, strict=True)}
    if {partition_of(merchant, merchant_partitions) for merchant in merchants} != {record.partition}:
        return None
    return CardBlock(record.partition, record.offset, record.timestamp_ms, block.kernel, frozenset(inputs))


class OtherKernels:
    """Tells the card agent's blocks of other kernels from those that others wrote; for one agent, on its thread.

    Args:
        agent: Name of the agent that reads the blocks, for logs.
        stopping: Set when the worker ends; questions to brokers are not repeated after that.
        waiting: Called before a question is repeated, and between blocks that are read; may raise.
    """

    def __init__(
        self, bootstrap: str, settings: Settings, agent: str, stopping: threading.Event, waiting: Callable[[], None]
    ) -> None:
        self._bootstrap, self._settings, self._waiting = bootstrap, settings, waiting
        self._retries = Retries(agent, waiting, stopping)

    def wrote(self, record: Record, unseen: Callable[[Iterable[Input]], Collection[Input]]) -> bool:
        """Return whether the card agent wrote a block of another kernel, of which no other holds the transactions.

        ``unseen`` returns the inputs that no block before this one has shown.
        """
        block = card_block(record, self._settings.merchant_partitions)
        inputs = frozenset() if block is None else frozenset(unseen(block.inputs))
        ask = partial(card_offsets, self._bootstrap, self._settings, inputs)
        if not inputs or not is_committed(inputs, self._retries.call("offsets of the card agent's group", ask)):
            return False
        behind = {record.partition: record.offset + 1}
        for other in read_blocks(self._bootstrap, self._settings, behind):
            self._waiting()
            if is_known(other.kernel):
                inputs -= other.inputs
        return bool(inputs) and is_at_home(self._bootstrap, self._settings, record.partition, min(inputs))


class _OfMerchant(msgspec.Struct):
    """The merchant of a transaction."""

    merchant_id: str


_decode_merchant: Final = msgspec.json.Decoder(_OfMerchant).decode


def is_at_home(bootstrap: str, settings: Settings, partition: int, source: Input) -> bool:
    """Return whether the merchant of a transaction belongs to a partition of ``profiled``; True if it is gone."""
    topic, number, offset = source
    reading = records_within(bootstrap, settings.topic(topic), settings, {number: range(offset, offset + 1)})
    with closing(reading) as records:
        record = next(records, None)
    if record is None:
        return True
    try:
        merchant = _decode_merchant(record.value or b"").merchant_id
    except UNREADABLE:
        return False
    return partition_of(merchant, settings.merchant_partitions) == partition


def is_committed(inputs: Iterable[Input], committed: Mapping[tuple[str, int], int]) -> bool:
    """Return whether all of these records lie below offsets, which are by topic without prefix and partition."""
    return all(offset < committed.get((topic, number), 0) for topic, number, offset in inputs)


def card_offsets(bootstrap: str, settings: Settings, inputs: Iterable[Input]) -> dict[tuple[str, int], int]:
    """Return what the card agent's group has committed of the inputs' partitions, by topic without prefix.

    A block can be read a moment before the offsets that its transaction commits: what is under way is waited for.
    """
    names = {settings.topic(topic.name): topic.name for topic in (TRANSACTIONS, REROUTED)}
    partitions = {
        (settings.topic(topic), number)
        for topic, number, _ in inputs
        if topic in names.values() and 0 <= number < settings.card_partitions
    }
    if not partitions:
        return {}
    group = settings.topic(_CARD)
    with closing(group_consumer(bootstrap, group, settings=settings, stable=True)) as consumer:
        committed = committed_by_group(consumer, sorted(partitions))
    return {(names[topic], number): offset for (topic, number), offset in committed.items()}


def read_blocks(bootstrap: str, settings: Settings, starts: Mapping[int, int]) -> Iterable[CardBlock]:
    """Yield the blocks of ``profiled`` from an offset of each partition up to its end, those of labels alone aside."""
    name = settings.topic(PROFILED.name)
    reading = read_batches(
        bootstrap, name, settings=settings, partitions=list(starts), start=starts, skip_unreadable=True,
        tuning=QUEUE_OF_BLOCKS,
    )  # fmt: skip
    with closing(reading) as batches:
        for record in (record for records in batches for record in records):
            if (block := card_block(record, settings.merchant_partitions)) is not None:
                yield block


class StartFindings(NamedTuple):
    """The newest blocks that the card agent wrote, as far as a start must know of them."""

    undecided: Sequence[CardBlock] = ()
    """The first undecided block of another kernel of each partition."""
    newest: CardBlock | None = None
    """The newest block of all, if it is of another kernel."""
    own: bool = False
    """Whether an undecided block is of this kernel."""


def start_findings(
    bootstrap: str, settings: Settings, positions: Mapping[int, int], ends: Mapping[int, int]
) -> StartFindings:
    """Look at the newest blocks, decided or not: the last ``LAST_OFFSETS`` of a partition at most.

    ``positions`` are the offsets by partition that the score agent goes on from, ``ends`` those of what can be read.
    """
    blocks: list[CardBlock] = []
    # Nearly always all are of this kernel, and a few show it.
    for reach in (NEWEST_OFFSETS, LAST_OFFSETS):
        starts = {
            number: max(0, end - LAST_OFFSETS, min(positions[number], end - reach))
            for number, end in ends.items()
            if end > 0
        }
        blocks = list(read_blocks(bootstrap, settings, starts)) if starts else []
        if all(is_known(block.kernel) for block in blocks):
            return StartFindings()
    # After they were read: what is committed with a block is known by then.
    committed = card_offsets(bootstrap, settings, {at for block in blocks for at in block.inputs})

    @cache
    def is_genuine(block: CardBlock) -> bool:
        return is_at_home(bootstrap, settings, block.partition, min(block.inputs))

    while True:
        found = _findings(written_by_card_agent(blocks, committed), positions)
        decisive = [*found.undecided, *([] if found.newest is None else [found.newest])]
        if all(map(is_genuine, decisive)):
            return found
        blocks = [block for block in blocks if block not in decisive or is_genuine(block)]


def _findings(written: Sequence[CardBlock], positions: Mapping[int, int]) -> StartFindings:
    undecided = [block for block in written if block.offset >= positions[block.partition]]
    others = {block.partition: block for block in reversed(undecided) if not is_known(block.kernel)}
    newest = max(written, key=lambda block: block.timestamp_ms, default=None)
    if newest is not None and is_known(newest.kernel):
        newest = None
    own = any(is_known(block.kernel) for block in undecided)
    return StartFindings([others[number] for number in sorted(others)], newest, own)


def written_by_card_agent(blocks: Sequence[CardBlock], committed: Mapping[tuple[str, int], int]) -> list[CardBlock]:
    """Return the blocks that the card agent wrote, in their order; the first ones may be taken for such wrongly."""
    own = {at for block in blocks if is_known(block.kernel) for at in block.inputs}
    seen: dict[tuple[int, str, int], int] = {}
    written = []
    for block in blocks:
        inputs = {at for at in block.inputs if at[2] > seen.get((block.partition, *at[:2]), -1)}
        if not inputs or not is_committed(inputs, committed) or (not is_known(block.kernel) and inputs <= own):
            continue
        written.append(block)
        for topic, number, offset in sorted(inputs):
            seen[block.partition, topic, number] = offset
    return written


def members_of_others(bootstrap: str, settings: Settings) -> list[str]:
    """Return the groups of card and score agents with a member that does not say that it is of this kernel.

    An admin client that has to look for a group's coordinator twice ends the process (as `group_consumer` says). So
    a new one asks each time, and only once the coordinator has answered a consumer.
    """
    groups = [settings.topic(agent) for agent in (_CARD, SCORE)]

    def is_of_others(name: str) -> bool:
        with closing(group_consumer(bootstrap, name, settings=settings)) as consumer:
            committed_by_group(consumer, [(settings.topic(TRANSACTIONS.name), 0)])
        client = admin_client(bootstrap, settings=settings)
        (future,) = client.describe_consumer_groups([name], request_timeout=ANSWER_S).values()
        try:
            return any(member.client_id != MEMBER_ID for member in future.result().members)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.GROUP_ID_NOT_FOUND:
                raise
            return False

    return [name for name in groups if retried(partial(is_of_others, name))]
