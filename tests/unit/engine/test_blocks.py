"""Blocks of ``profiled``: how batches are cut into them, and what is read from them."""

import json
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest

from pipeline.engine.cards.card_batch import process_together
from pipeline.engine.encoding.blocks import (
    MOST_BYTES,
    MOST_ROWS,
    Block,
    BlockError,
    Sources,
    pack_block,
    parse_block,
    row_count,
)
from pipeline.engine.records.forwarding import forward
from pipeline.engine.records.partitioner import partition_of
from pipeline.engine.records.results import Result
from pipeline.engine.scores.block_messages import read_messages
from pipeline.engine.scores.profiled import read_rows
from schemas.codec import MAX_VALUE_BYTES, encode
from schemas.messages import Profiled, ProfiledLabel
from schemas.records import Output, Record
from schemas.topics import PROFILED, REROUTED, TRANSACTIONS
from tests.helpers.logs import START, LabelLog, Log, after, label, to, transaction
from tests.reference.blocks import read_block
from tests.unit.engine.test_engine_card import NOW, CardPartition, MemoryStore, busy_logs, options

MERCHANT_PARTITIONS = 3


def card(cards: int = 1) -> CardPartition:
    made = options(partitions=cards)._replace(merchant_partitions=MERCHANT_PARTITIONS)
    return CardPartition(made, None, MemoryStore())


def blocks(result: Result) -> list[Output]:
    return to(PROFILED, result)


def rows_of(outputs: Sequence[Output]) -> dict[int, list[Profiled]]:
    """Rows by partition, in order."""
    found: dict[int, list[Profiled]] = {}
    for output in outputs:
        assert output.partition is not None
        found.setdefault(output.partition, []).extend(read_messages(output.value))
    return found


def purchases(count: int, **changes: object) -> Log:
    log = Log(TRANSACTIONS)
    for number in range(count):
        at = after(minutes=number)
        log.append(transaction(number, at, merchant_id=f"m{number % 7}", **changes), at)
    return log


def test_a_batch_is_one_block_for_each_partition_of_merchants() -> None:
    result = card().process(purchases(60).records, NOW)
    found = rows_of(blocks(result))
    assert [output.partition for output in blocks(result)] == [0, 1, 2]
    assert {(output.key, output.headers) for output in blocks(result)} == {(None, ())}
    for partition, rows in found.items():
        assert {partition_of(row.merchant_id, MERCHANT_PARTITIONS) for row in rows} == {partition}
        offsets = [row.source.offset for row in rows]
        assert offsets == sorted(offsets)
    assert sum(map(len, found.values())) == 60


def test_labels_stand_among_transactions_in_the_order_of_the_log() -> None:
    transactions, labels = busy_logs(4, 200)
    # One partition of merchants has all of it; the messages of single records are what they were.
    whole = CardPartition(options(), None, MemoryStore())
    alone = CardPartition(options(), None, MemoryStore())
    for first, end in pairwise([*range(0, 200, 23), 400]):
        batch = [*transactions.records[first:end], *labels.records[first:end]]
        rows = [row for output in blocks(whole.process(batch, NOW)) for row in read_messages(output.value)]
        # Each transaction by itself, and then each label: what follows an earlier one stands behind all of these.
        singly = [read_messages(output.value) for item in batch for output in blocks(alone.process([item], NOW))]
        assert sorted(map(repr_of, rows)) == sorted(repr_of(row) for source in singly for row in source)
        for at, row in enumerate(rows):
            if isinstance(row, ProfiledLabel):
                same = [r for r in rows[at:] if (r.card_id, r.transaction_id) == (row.card_id, row.transaction_id)]
                assert all(isinstance(item, ProfiledLabel) for item in same)


def repr_of(message: Profiled) -> tuple[str, str, int]:
    return type(message).__name__, message.source.topic, message.source.offset


def test_blocks_are_cut_by_rows() -> None:
    result = CardPartition(options(), None, MemoryStore()).process(purchases(2 * MOST_ROWS + 5, extra="x").records, NOW)
    counts = [parse_block(output.value).rows for output in blocks(result)]
    assert sum(counts) == 2 * MOST_ROWS + 5
    assert max(counts) <= MOST_ROWS
    assert [row_count(output.value) for output in blocks(result)] == counts
    assert len(counts) <= 4


def test_blocks_are_cut_by_bytes_and_a_larger_row_is_a_block_of_its_own() -> None:
    log = Log(TRANSACTIONS)
    sizes = [100_000, 100_000, 100_000, MAX_VALUE_BYTES - 1_000, 10, 200_000, 10]
    for number, size in enumerate(sizes):
        log.append(transaction(number, after(number), note="x" * size), after(number))
    result = CardPartition(options(), None, MemoryStore()).process(log.records, after(10))
    offsets = [[row.source.offset for row in read_messages(output.value)] for output in blocks(result)]
    assert offsets == [[0, 1], [2], [3], [4, 5, 6]]
    lengths = [len(output.value or b"") for output in blocks(result)]
    assert all(length <= MOST_BYTES for length in (*lengths[:2], lengths[3]))
    assert MAX_VALUE_BYTES - 1_000 < lengths[2] < MAX_VALUE_BYTES + 1_000


def test_a_block_of_many_rows_is_cut_before_it_exceeds_the_limit_with_its_head() -> None:
    for size in range(100, 120):
        log = purchases(MOST_ROWS, extra="x" * size)
        result = CardPartition(options(), None, MemoryStore()).process(log.records, NOW)
        lengths = [len(output.value or b"") for output in blocks(result)]
        assert MOST_BYTES - 1_000 < max(lengths) <= MOST_BYTES


def test_a_batch_of_several_card_partitions_is_one_block_in_their_order() -> None:
    parts = []
    for number in range(2):
        log = Log(TRANSACTIONS, partition=number)
        cards = [f"c{item}" for item in range(40) if partition_of(f"c{item}", 2) == number]
        for at, name in enumerate(cards):
            log.append(transaction(at, after(at), card_id=name, transaction_id=f"{number}-{at}"), after(at))
        labels = LabelLog(number)
        labels.append(label(0, after(50), transaction_id=f"{number}-0", card_id=cards[0]), after(50))
        parts.append([*log.records, *labels.records])
    rules = options(partitions=2)

    def processed(*records: list[Record]) -> list[Output]:
        states = [CardPartition(rules, None, MemoryStore()) for _ in records]
        return blocks(
            process_together([(state.kernels, part) for state, part in zip(states, records, strict=True)], NOW, rules)
        )

    outputs = processed(*parts)
    (rows,) = rows_of(outputs).values()
    assert rows == [row for part in parts for row in rows_of(processed(part))[0]]
    assert [row.source.partition for row in rows] == sorted(row.source.partition for row in rows)
    assert len(outputs) == 1
    assert len({row.source.topic for row in rows}) == 2


def test_the_documented_bytes_are_read_alike_by_the_reference() -> None:
    transactions, labels = busy_logs(7, 120)
    outputs = blocks(card().process([*transactions.records, *labels.records], NOW))
    reported = [json.loads(encode(row)) for output in outputs for row in read_messages(output.value)]
    assert [row for output in outputs for row in read_block(output.value or b"")] == reported
    assert {row["kind"] for row in reported} == {"transaction", "label"}


def test_what_was_passed_on_says_where_it_was_read() -> None:
    passed = forward(Record(TRANSACTIONS.name, 1, 7, 10**13, b"k", transaction(1)), REROUTED, "c1", 0)
    read = Record(REROUTED.name, 0, 5, 10**13, passed.key, passed.value, passed.headers)
    plain = Record(TRANSACTIONS.name, 0, 9, 10**13, b"k", transaction(2, card_id="c3"))
    log = Log(PROFILED)
    log.take_whole(CardPartition(options(), None, MemoryStore()).process([plain, read], NOW))
    rows = read_rows(log.records)
    assert [rows.input(row) for row in range(2)] == [("transactions", 0), ("rerouted", 0)]
    messages = read_messages(log.records[0].value)
    assert [(row.source.partition, row.source.offset) for row in messages] == [(0, 9), (1, 7)]


def test_a_block_of_another_format_says_what_this_release_reads() -> None:
    (output,) = blocks(CardPartition(options(), None, MemoryStore()).process(purchases(1).records, START))
    value = output.value or b""
    with pytest.raises(BlockError, match="a block of format 2, and this release reads format 1"):
        parse_block(value[:4] + b"\x02" + value[5:])


def test_a_record_of_a_release_before_blocks_says_what_to_delete() -> None:
    with pytest.raises(BlockError, match="delete the pipeline's topics and its data directory"):
        parse_block(b'{"kind":"transaction","schema_version":1,"transaction_id":"t"}')


def test_sources_are_named_as_ranges() -> None:
    offsets = [7, 1, 2, 3, 9, 5]
    numbers = np.array(offsets), np.array([0, 0, 0, 0, 1, 0], np.int32), np.array([0, 0, 0, 0, 0, 1], np.uint8)
    assert Sources(*numbers).text([b"transactions", b"labels"]) == (
        "transactions partition 0 offsets 1-3, 7; transactions partition 1 offsets 9; labels partition 0 offsets 5"
    )
    many = np.arange(0, 100, 2), np.zeros(50, np.int32), np.zeros(50, np.uint8)
    assert Sources(*many).text([b"t"]).endswith(" 36, 38, ...")


def test_a_block_of_another_kernel_keeps_its_number_of_features() -> None:
    (output,) = blocks(CardPartition(options(), None, MemoryStore()).process(purchases(3).records, NOW))
    block: Block = parse_block(output.value)
    other = pack_block(block._replace(kernel="0-other", features=np.ones((3, 2))))
    rows = read_rows([Record(PROFILED.name, 0, 4, 0, None, other)])
    assert rows.kernels == {0: "0-other"}
    assert np.isnan(rows.features[:, :3]).all()
