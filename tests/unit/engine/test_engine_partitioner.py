"""Records that lie elsewhere than Java's partitioner would have put them find the way to their card's partition."""

import json
from datetime import datetime
from typing import Any

import pyarrow as pa
import pytest

from pipeline.engine.cards.card_partition import CardPartition
from pipeline.engine.partition_state.state import MemoryStore
from pipeline.engine.records.forwarding import NotForwarded, forward, header_names, origin
from pipeline.engine.records.partitioner import partition_of, partitions_of
from pipeline.engine.records.results import Result
from schemas.messages import RecordPosition
from schemas.records import Headers, Record
from schemas.topics import DEAD_LETTERS, REROUTED, TRANSACTIONS
from tests.chaos import arithmetic
from tests.helpers.logs import START, Log, after, microseconds, reason, to, transaction
from tests.unit.engine.test_engine_card import bought, options

NOW = after(100)
PARTITIONS = 4
HOME = partition_of("c1", PARTITIONS)
ELSEWHERE = (HOME + 1) % PARTITIONS
TRACE: Headers = (("trace", b"abc"), ("empty", None), ("rerouted-topic", b"a producer's own"))


class Cluster:
    """The card agent's partitions with their logs; what is passed on is read before the next record."""

    def __init__(self) -> None:
        self.stores = [MemoryStore() for _ in range(PARTITIONS)]
        self.states = [CardPartition(options(partitions=PARTITIONS), None, store) for store in self.stores]
        self.logs = {
            topic: [Log(topic, partition) for partition in range(PARTITIONS)] for topic in (TRANSACTIONS, REROUTED)
        }
        self.hops = 0

    def buy(self, number: int, at: datetime = START, partition: int = HOME, **changes: Any) -> Result:
        record = self.logs[TRANSACTIONS][partition].append(transaction(number, at, **changes), at, b"key", TRACE)
        return self.work(partition, record)

    def work(self, partition: int, *records: Record) -> Result:
        whole = Result()
        result = self.states[partition].process(records, NOW)
        self.states[partition].commit()
        whole.counts += result.counts
        for output in result.outputs:
            if output.topic is not REROUTED:
                whole.outputs.append(output)
                continue
            assert output.partition is not None
            self.hops += 1
            # It arrives there much later than it was written.
            passed = self.logs[REROUTED][output.partition].append(output.value, after(90), output.key, output.headers)
            further = self.work(output.partition, passed)
            whole.outputs += further.outputs
            whole.counts += further.counts
        return whole


def test_java_s_partitioner_is_followed() -> None:
    """The vectors of Kafka's own test of its hash, and what toPositive makes of them."""
    known = {
        b"21": -973932308,
        b"foobar": -790332482,
        b"a-little-bit-long-string": -985981536,
        b"a-little-bit-longer-string": -1486304829,
        b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
        b"abc": 479470107,
    }
    # Of so many partitions, the number is the hash without its sign.
    numbers = partitions_of(pa.array([key.decode() for key in known]), 2**31).tolist()
    assert numbers == [signed & 0x7FFFFFFF for signed in known.values()]
    for key, signed in known.items():
        assert partition_of(key.decode(), 17) == (signed & 0x7FFFFFFF) % 17
    assert partition_of("c", 1) == 0
    assert partition_of("Müller", 1_000) == arithmetic.partition_of("Müller", 1_000)


def test_cards_of_any_length_are_hashed_together_as_by_themselves() -> None:
    names = ["é" * count + "x" * rest for count in range(9) for rest in range(9)]
    column = pa.array(names)
    assert partitions_of(column, 7).tolist() == [arithmetic.partition_of(name, 7) for name in names]
    assert partitions_of(column[5:], 7).tolist() == partitions_of(column, 7).tolist()[5:]
    assert partitions_of(column, 1).tolist() == [0] * len(names)
    assert partitions_of(column[:0], 7).tolist() == []


def test_a_record_elsewhere_is_passed_on_as_it_is() -> None:
    cluster = Cluster()
    record = cluster.logs[TRANSACTIONS][ELSEWHERE].append(transaction(1), START, None, TRACE)
    result = cluster.states[ELSEWHERE].process([record], NOW)
    (output,) = result.outputs
    assert (output.topic, output.partition, output.key, output.value) == (REROUTED, HOME, b"c1", record.value)
    assert output.headers == (
        *TRACE,
        ("rerouted-topic", b"transactions"),
        ("rerouted-partition", str(ELSEWHERE).encode()),
        ("rerouted-offset", b"0"),
        ("rerouted-timestamp-ms", str(record.timestamp_ms).encode()),
        ("rerouted-key", None),
    )
    assert result.counts == {("rerouted", "transactions"): 1}


def test_what_was_passed_on_is_profiled_as_if_it_had_lain_at_home() -> None:
    cluster, at_home = Cluster(), Cluster()
    for number in range(6):
        partition = ELSEWHERE if number % 2 else HOME
        (message,) = bought(cluster.buy(number, after(hours=number), partition))
        (expected,) = bought(at_home.buy(number, after(hours=number)))
        assert message.card_features == expected.card_features
        assert (message.case_id, message.case_sequence) == (expected.case_id, expected.case_sequence)
        assert message.transaction == expected.transaction
        assert message.source == RecordPosition(topic="transactions", partition=partition, offset=number // 2)
        read = RecordPosition(topic="rerouted", partition=HOME, offset=number // 2)
        assert message.read == (read if number % 2 else None)
    assert cluster.hops == 3


def test_a_repeat_in_another_partition_is_a_repeat() -> None:
    cluster = Cluster()
    assert bought(cluster.buy(1))
    result = cluster.buy(1, partition=ELSEWHERE)
    assert result.outputs == []
    assert result.counts == {("rerouted", "transactions"): 1, ("duplicate", ""): 1}
    other_way = Cluster()
    assert bought(other_way.buy(1, partition=ELSEWHERE))
    assert other_way.buy(1).counts == {("duplicate", ""): 1}


def test_an_unreadable_record_is_set_aside_where_it_lies() -> None:
    cluster = Cluster()
    result = cluster.buy(1, partition=ELSEWHERE, amount=-1)
    (dead,) = to(DEAD_LETTERS, result)
    assert [reason(dead, name) for name in ("topic", "partition", "error")] == [
        "transactions",
        str(ELSEWHERE),
        "amount_negative",
    ]
    assert cluster.hops == 0


def test_the_time_of_arrival_is_the_first_one() -> None:
    """An event that came too early for its own record is not made acceptable by the way it took."""
    cluster = Cluster()
    record = cluster.logs[TRANSACTIONS][HOME].append(transaction(1, after(2)), after(1))
    passed = forward(record, REROUTED, "c1", HOME)
    again = cluster.logs[REROUTED][HOME].append(passed.value, after(3), passed.key, passed.headers)
    (dead,) = to(DEAD_LETTERS, cluster.work(HOME, again))
    assert reason(dead, "error") == "event_time_in_future"


def headers_with(**changed: bytes | None) -> Headers:
    """Headers of a record that was passed on, of which some are other ones."""
    sound = {"topic": b"transactions", "partition": b"0", "offset": b"0", "timestamp-ms": b"0", "key": None}
    return tuple((f"rerouted-{name}", value) for name, value in {**sound, **changed}.items())


BAD_HEADERS: dict[str, Headers] = {
    "none": (),
    "the producer's only": TRACE,
    "not last": (*((name, b"1") for name in header_names(REROUTED)), ("more", b"")),
    "no number": headers_with(partition=b"-1"),
    "a null": headers_with(partition=None),
    "no partition": headers_with(partition=b"2147483648"),
    "no offset": headers_with(offset=b"999999999999999999"),
    "another topic": headers_with(topic=b"decisions"),
}


@pytest.mark.parametrize("headers", BAD_HEADERS.values(), ids=BAD_HEADERS)
def test_a_record_that_does_not_say_where_it_lay_is_set_aside(headers: Headers) -> None:
    cluster = Cluster()
    record = cluster.logs[REROUTED][HOME].append(transaction(1), START, b"c1", headers)
    result = cluster.work(HOME, record)
    (dead,) = result.outputs
    assert (dead.topic, dead.value, dead.headers[: len(headers)]) == (DEAD_LETTERS, record.value, headers)
    assert [reason(dead, name) for name in ("topic", "error")] == ["rerouted", "rerouted_headers"]
    with pytest.raises(NotForwarded, match="only the card agent may write"):
        origin(record, REROUTED, "")


def test_a_record_that_was_passed_on_to_the_wrong_place_goes_on_with_its_first_place() -> None:
    cluster = Cluster()
    record = cluster.logs[TRANSACTIONS][ELSEWHERE].append(transaction(1), START, b"key", TRACE)
    passed = forward(record, REROUTED, "c1", ELSEWHERE)
    again = cluster.logs[REROUTED][ELSEWHERE].append(passed.value, START, passed.key, passed.headers)
    (message,) = bought(cluster.work(ELSEWHERE, again))
    assert message.source == RecordPosition(topic="transactions", partition=ELSEWHERE, offset=0)
    assert cluster.hops == 1


def test_the_origin_is_the_record_that_was_forwarded() -> None:
    record = Record("blue-transactions", 3, 17, 1_700_000_000_000, b"\xff", b"value", TRACE)
    for value, written in ((None, b"value"), (b"mapped", b"mapped")):
        output = forward(record, REROUTED, "c1", 2, value=value)
        read = Record("blue-rerouted", 2, 5, 1_800_000_000_000, output.key, output.value, output.headers)
        assert origin(read, REROUTED, "blue-") == (record, written, None)


def test_a_prefix_is_no_part_of_the_names_that_are_reported() -> None:
    state = CardPartition(options(partitions=PARTITIONS, prefix="blue-"), None, MemoryStore())
    record = Record("blue-transactions", ELSEWHERE, 0, microseconds(START) // 1_000, None, transaction(1), ())
    result = state.process([record], NOW)
    (output,) = result.outputs
    assert result.counts == {("rerouted", "transactions"): 1}
    home = CardPartition(options(partitions=PARTITIONS, prefix="blue-"), None, MemoryStore())
    read = Record("blue-rerouted", HOME, 4, 0, output.key, output.value, output.headers)
    (message,) = bought(home.process([read], NOW))
    assert message.source == RecordPosition(topic="transactions", partition=ELSEWHERE, offset=0)
    assert message.read == RecordPosition(topic="rerouted", partition=HOME, offset=4)
    assert json.loads(bytes(message.transaction))["card_id"] == "c1"
