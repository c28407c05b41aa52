"""A batch is blamed for what its bytes show, and its range ends exactly with it."""

import asyncio
import gzip
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import pytest
from aiokafka.record.util import calc_crc32c
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.kafka.damage import unreadable
from pipeline.kafka.damage.unreadable import DAMAGED, STALLED, Fault, find_fault, has_more_members
from pipeline.kafka.records.raw_fetch import Brokers, Fetched, FetchRefused, Replicas, Wanted
from pipeline.kafka.records.record_batches import split_batches
from tests.helpers.batches import record_batch, with_payload

PARTITION: Final = ("profiled", 0)
LEADER: Final = 1
_HEADER_BYTES: Final = 61


def at_offset(batch: bytes, base_offset: int) -> bytes:
    return base_offset.to_bytes(8, "big") + batch[8:]


def twofold(records: int, at: int) -> bytes:
    """A batch whose records are compressed in two gzip members."""
    plain = record_batch([b"value"] * records)[_HEADER_BYTES:]
    return with_payload(record_batch([b""] * records), gzip.compress(plain[:at]) + gzip.compress(plain[at:]), "gzip")


@dataclass
class Log:
    """A partition as its brokers answer for it: segments of batches; some replicas hold other bytes."""

    segments: list[list[bytes]]
    replicas: dict[int, list[list[bytes]]] = field(default_factory=dict)
    aborted: tuple[tuple[int, int], ...] = ()
    away: frozenset[int] = frozenset()

    @property
    def end(self) -> int:
        return sum(next(split_batches(batch)).record_count for segment in self.segments for batch in segment)

    async def describe(self, topic: str) -> Brokers:
        assert topic == PARTITION[0]
        return Brokers({}, {PARTITION: Replicas(LEADER, (LEADER, *self.replicas, *self.away))})

    async def fetch(self, wanted: Wanted, isolation: int = 1, broker: int | None = None) -> Fetched:
        del isolation
        if broker in self.away:
            raise TimeoutError
        for segment in self.segments if broker is None else self.replicas[broker]:
            for number, batch in enumerate(segment):
                # As a broker does, by offsets that a disk may have damaged.
                if next(split_batches(batch)).end > wanted.offset:
                    data = b"".join(segment[number:])[: max(len(batch), wanted.max_bytes)]
                    return Fetched(0, 0, self.end, self.end, self.aborted, data)
        return Fetched(0, 0, self.end, self.end, self.aborted, b"")


@pytest.fixture
def examine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Fault | None]:
    def examined(log: Log, start: int, *words: tuple[str, str] | None, is_silent: bool = False) -> Fault | None:
        answers = iter(words)
        monkeypatch.setattr(unreadable, "ask", lambda _config, question, _waiting: asyncio.run(question(log)))
        monkeypatch.setattr(unreadable, "_client_error", lambda *_: next(answers))
        return find_fault({}, PARTITION, start, lambda: None, is_silent=is_silent)

    return examined


def log_of(counts: list[int], breaks: set[int], damaged: int, flipped: int) -> Log:
    """A log with a batch of each of ``counts`` records; the one numbered ``damaged`` has a flipped byte."""
    segments: list[list[bytes]] = [[]]
    offset = 0
    for number, count in enumerate(counts):
        batch = at_offset(record_batch([b"v"] * count, "lz4"), offset)
        if number == damaged:
            at = 16 + flipped % (len(batch) - 16)
            batch = batch[:at] + bytes([batch[at] ^ 0xFF]) + batch[at + 1 :]
        if number in breaks and segments[-1]:
            segments.append([])
        segments[-1].append(batch)
        offset += count
    return Log(segments)


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=8), st.sets(st.integers(0, 7)), st.data(), st.integers(0, 10_000)
)
def test_a_damaged_range_ends_with_its_batch_whatever_byte_is_damaged(
    counts: list[int], breaks: set[int], data: st.DataObject, flipped: int
) -> None:
    damaged = data.draw(st.integers(0, len(counts) - 1))
    log = log_of(counts, breaks, damaged, flipped)
    base, end = sum(counts[:damaged]), sum(counts[: damaged + 1])
    start = data.draw(st.integers(base, end - 1))
    seen = asyncio.run(log.fetch(Wanted(PARTITION, start)))
    # A broker that itself takes the offset for another batch's shows this one to nobody.
    assume(next(split_batches(seen.data), None) == next(split_batches(log_batch(log, damaged))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unreadable, "ask", lambda _config, question, _waiting: asyncio.run(question(log)))
        if ends_unknown(log, damaged):
            with pytest.raises(FetchRefused, match="nothing tells"):
                find_fault({}, PARTITION, start, lambda: None)
            return
        fault = find_fault({}, PARTITION, start, lambda: None)
    assert fault == Fault(start, end, DAMAGED, "its checksum is not that of its bytes")


def ends_unknown(log: Log, number: int) -> bool:
    """Whether a batch's header contradicts itself, and none follows in its segment of the log."""
    batch = log_batch(log, number)
    header = next(split_batches(batch))
    return header.record_count != header.last_offset_delta + 1 and any(batch == part[-1] for part in log.segments)


def log_batch(log: Log, number: int) -> bytes:
    return [batch for segment in log.segments for batch in segment][number]


@pytest.mark.parametrize("compression", ["none", "gzip", "lz4", "zstd"])
def test_a_client_that_fails_proves_nothing_about_a_batch_that_another_one_reads(
    examine: Callable[..., Fault | None], compression: str
) -> None:
    log = Log([[at_offset(record_batch([b"v"] * 5, compression), 0)]])
    failure = ("_BAD_MSG", "damaged on its way")
    assert examine(log, 2, None, None) is None
    assert examine(log, 2, failure, None) is None
    # An uncompressed batch whose checksum is right can be read.
    expected = None if compression == "none" else Fault(2, 5, *failure)
    assert examine(log, 2, failure, failure) == expected


def test_a_batch_that_is_whole_once_was_damaged_on_its_way(examine: Callable[..., Fault | None]) -> None:
    damaged = log_of([3, 3], set(), 1, 50)

    class Mended(Log):
        asked = 0

        async def fetch(self, wanted: Wanted, isolation: int = 1, broker: int | None = None) -> Fetched:
            self.asked += 1
            return await (damaged if self.asked < unreadable.FETCHES else super()).fetch(wanted, isolation, broker)

    assert examine(Mended(log_of([3, 3], set(), -1, 0).segments), 4, None, None) is None


def test_the_brokers_that_may_hold_a_damaged_batch_whole_are_named(examine: Callable[..., Fault | None]) -> None:
    damaged, whole = log_of([3, 3], set(), 1, 50), log_of([3, 3], set(), -1, 0)
    damaged.replicas = {2: whole.segments, 3: damaged.segments}
    damaged.away = frozenset({4})
    fault = examine(damaged, 3)
    assert fault is not None
    assert (fault.end, fault.others) == (6, (2, 4))


@pytest.mark.parametrize("at", [1, 30, 79])
def test_of_a_silent_batch_the_header_names_the_end(examine: Callable[..., Fault | None], at: int) -> None:
    cut = at_offset(twofold(20_000, at * 100), 4)
    log = Log([[at_offset(record_batch([b"v"] * 4), 0), cut, at_offset(record_batch([b"v"]), 20_004)]])
    fault = examine(log, 11, is_silent=True)
    assert fault is not None
    assert (fault.start, fault.end, fault.error) == (11, 20_004, STALLED)


def test_marks_and_aborted_transactions_may_stand_before_a_silent_batch(examine: Callable[..., Fault | None]) -> None:
    def of_transaction(batch: bytes, producer: int, *, is_mark: bool = False) -> bytes:
        attributes = int.from_bytes(batch[21:23], "big") | 0x10 | (0x20 if is_mark else 0)
        changed = batch[:21] + attributes.to_bytes(2, "big") + batch[23:43] + producer.to_bytes(8, "big") + batch[51:]
        return changed[:17] + int(calc_crc32c(changed[21:])).to_bytes(4, "big") + changed[21:]

    record, cut = record_batch([b"v"]), twofold(6, 40)
    aborted = [at_offset(of_transaction(record, 7), 0), at_offset(of_transaction(record, 7, is_mark=True), 1)]
    committed = at_offset(of_transaction(record, 7), 2)
    assert examine(Log([[*aborted, at_offset(cut, 2)]], aborted=((7, 0),)), 0, is_silent=True) == Fault(
        0, 8, STALLED, "it is compressed in parts, of which clients read one"
    )
    # What can be read comes first: the client is slow.
    assert examine(Log([[*aborted, committed, at_offset(cut, 3)]], aborted=((7, 0),)), 0, is_silent=True) is None
    assert examine(Log([aborted], aborted=((7, 0),)), 0, is_silent=True) is None


@pytest.mark.parametrize("compression", ["none", "lz4", "gzip", "zstd", "snappy_xerial"])
def test_a_whole_batch_is_not_blamed_for_a_client_that_stands_still(
    examine: Callable[..., Fault | None], compression: str
) -> None:
    assert examine(Log([[at_offset(record_batch([b"v"] * 5, compression), 0)]]), 2, is_silent=True) is None


def test_a_gzip_stream_of_one_member_has_no_more() -> None:
    plain = bytes(5 * 1024 * 1024)
    one, two = gzip.compress(plain), gzip.compress(plain) + gzip.compress(b"")
    calls: list[None] = []
    assert not has_more_members(memoryview(one), lambda: calls.append(None))
    assert has_more_members(memoryview(two))
    # Piece by piece: nothing of it is kept.
    assert len(calls) >= 5
