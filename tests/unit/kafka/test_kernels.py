"""Which blocks of ``profiled`` the card agent wrote: told by their sources, by offsets and by the other blocks."""

from collections.abc import Mapping

import msgspec
import pytest

from pipeline.engine.records.partitioner import partition_of
from pipeline.features.catalogue import KERNEL_VERSION
from pipeline.kafka.checks.kernel_versions import CardBlock, card_block, is_committed, written_by_card_agent
from schemas.messages import RecordPosition
from schemas.records import Record
from schemas.topics import PROFILED
from tests.helpers.logs import LabelLog, after, block_of, decode_profiled, label, transaction
from tests.unit.engine.test_engine_score import profile, purchases

OTHER = "0-other"
COMMITTED: Mapping[tuple[str, int], int] = {("transactions", 0): 10, ("rerouted", 1): 5}


def block(offset: int, kernel: str, *offsets: int, partition: int = 0, topic: str = "transactions") -> CardBlock:
    return CardBlock(partition, offset, 1_000 + offset, kernel, frozenset((topic, 0, at) for at in offsets))


def test_the_inputs_of_a_block_are_where_the_card_agent_read_its_transactions() -> None:
    (record,) = profile(purchases(1, merchant_id="m1").records).records
    message = decode_profiled(record.value or b"")
    moved = msgspec.structs.replace(
        message,
        source=RecordPosition(topic="transactions", partition=3, offset=7),
        read=RecordPosition(topic="rerouted", partition=1, offset=4),
    )
    partitions = 5
    home = partition_of("m1", partitions)
    found = card_block(Record(PROFILED.name, home, 6, 1_000, None, block_of(message, moved)), partitions)
    assert found == CardBlock(home, 6, 1_000, KERNEL_VERSION, frozenset({("transactions", 0, 0), ("rerouted", 1, 4)}))
    # Where its merchant does not belong, the card agent did not write it.
    elsewhere = Record(PROFILED.name, (home + 1) % partitions, 6, 1_000, None, block_of(moved))
    assert card_block(elsewhere, partitions) is None


def test_what_is_no_block_of_transactions_is_none_of_the_card_agent_s() -> None:
    labels = LabelLog()
    reported = labels.append(label(0, after(1)), after(1))
    of_labels = profile(purchases(1).records, [reported]).records[-1]
    for value in (None, b"garbage", of_labels.value):
        assert card_block(Record(PROFILED.name, 0, 0, 0, None, value), 1) is None
    assert card_block(Record(PROFILED.name, 0, 0, 0, None, transaction()), 1) is None


@pytest.mark.parametrize(
    ("inputs", "below"),
    [
        ({("transactions", 0, 9), ("rerouted", 1, 4)}, True),
        ({("transactions", 0, 9), ("transactions", 0, 10)}, False),
        ({("transactions", 1, 0)}, False),
        ({("control", 0, 0)}, False),
    ],
)
def test_only_what_the_group_has_committed_was_read(inputs: set[tuple[str, int, int]], *, below: bool) -> None:
    assert is_committed(inputs, COMMITTED) is below


@pytest.mark.parametrize(
    ("blocks", "written"),
    [
        # An upgrade that did not wait; of one block alone, too.
        ([block(0, KERNEL_VERSION, 0), block(1, OTHER, 1), block(2, OTHER, 2)], [0, 1, 2]),
        ([block(0, OTHER, 1)], [0]),
        # Ahead of what was read.
        ([block(0, KERNEL_VERSION, 0), block(1, OTHER, 10)], [0]),
        # Repeats of what stands before, of what stands behind, of both.
        ([block(0, KERNEL_VERSION, 3, 4), block(1, OTHER, 4)], [0]),
        ([block(0, OTHER, 1, 2), block(1, KERNEL_VERSION, 1), block(2, KERNEL_VERSION, 2)], [1, 2]),
        ([block(0, KERNEL_VERSION, 1), block(1, OTHER, 1, 2), block(2, KERNEL_VERSION, 2)], [0, 2]),
        # In order within each partition.
        ([block(0, KERNEL_VERSION, 5), block(0, OTHER, 4, partition=1)], [0, 0]),
    ],
)
def test_blocks_that_others_wrote_are_no_word_of_the_card_agent(blocks: list[CardBlock], written: list[int]) -> None:
    assert [found.offset for found in written_by_card_agent(blocks, COMMITTED)] == written
