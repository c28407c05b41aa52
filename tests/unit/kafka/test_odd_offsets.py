"""How far records can be believed that claim to have certain offsets, over random logs."""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.kafka import odd_offsets
from pipeline.kafka.odd_offsets import Fetch, FetchLog, NotSeen, ReadableEnd, Seen, check_claims, is_fresh

MARK: Final = "mark"


class Batch(NamedTuple):
    """A batch in the model log: a mark of a transaction, or records with their claims."""

    base: int
    deltas: list[int]
    writer: str
    is_mark: bool = False

    @property
    def end(self) -> int:
        return self.base + len(self.deltas)


def honest(length: int) -> list[int]:
    return list(range(length))


PARTS: Final = st.lists(
    st.one_of(
        st.tuples(st.just("honest"), st.integers(1, 4).map(honest)),
        st.tuples(st.just("aborted"), st.integers(1, 4).map(honest)),
        st.tuples(st.just(MARK), st.just([0])),
        st.tuples(st.just("odd"), st.lists(st.integers(-2, 12), min_size=1, max_size=4)),
        # Many claim the same, with the same content.
        st.tuples(st.just("copy"), st.just([9])),
    ),
    max_size=12,
)


def log_of(parts: list[tuple[str, list[int]]]) -> list[Batch]:
    """Number the batches; of copies, each claims the same offset as the first one."""
    batches: list[Batch] = []
    at, copied = 0, -1
    for kind, deltas in parts:
        if kind == "copy":
            copied = copied if copied > at else at + deltas[0]
        batches.append(Batch(at, [copied - at] if kind == "copy" else deltas, kind, kind == MARK))
        at = batches[-1].end
    return batches


class Client:
    """What librdkafka makes of the log: from an offset on, batch by batch.

    Args:
        batches: The log.
        batches_a_fetch: How many a fetch brings.
        position: Where it begins.
        reported: Whether its log says where fetches begin.
        committed: Whether it leaves out aborted records.
    """

    def __init__(
        self,
        batches: list[Batch],
        position: int,
        batches_a_fetch: int = 1,
        *,
        reported: bool = True,
        committed: bool = False,
    ) -> None:
        self.batches, self.position, self.batches_a_fetch, self.reported = batches, position, batches_a_fetch, reported
        self.unseen = (MARK, "aborted") if committed else (MARK,)
        self.fetches = self._read()

    def _read(self) -> Iterator[Fetch]:
        while (left := [batch for batch in self.batches if batch.end > self.position]) != []:
            found: list[Seen] = []
            last = -1
            for batch in left[: self.batches_a_fetch]:
                for number, delta in enumerate([] if batch.writer in self.unseen else batch.deltas):
                    if batch.base + delta >= self.position:
                        last = batch.base + delta
                        found.append(Seen(last, "copy" if batch.writer == "copy" else (batch.base, number)))
            marks = any(batch.is_mark for batch in left[: self.batches_a_fetch])
            start, self.position = self.position, max(last + 1, left[: self.batches_a_fetch][-1].end)
            if found and self.reported:
                yield Fetch(found, start, is_batch=not marks)
            else:
                yield from (Fetch([item]) for item in found)

    def read(self) -> Fetch | NotSeen:
        fetch = next(self.fetches, None)
        return NotSeen(self.position) if fetch is None else fetch

    def records(self) -> Iterator[Seen]:
        return (seen for fetch in self.fetches for seen in fetch.records)


def first_at(batches: list[Batch], *, committed: bool = False) -> Callable[[int], Seen | None]:
    return lambda offset: next(Client(batches, offset, committed=committed).records(), None)


def check(
    batches: list[Batch],
    start: int,
    last: int,
    *,
    claims: Sequence[int] = (),
    own: dict[int, int] | None = None,
    log_start: int = 0,
    **client: Any,
) -> ReadableEnd | None:
    walk = Client(batches, max(start, log_start), **client)
    gap = range(start, last + 1)
    fresh = first_at(batches), first_at(batches, committed=True)
    return check_claims(walk.read, *fresh, gap, claims, lambda: log_start, {} if own is None else own)


def read_all(
    batches: list[Batch], most: int = 4, stale: Sequence[bool] = ()
) -> tuple[list[Seen], list[tuple[int, int]]]:
    """Read as agents and other readers do: the records taken, and the ranges passed over.

    ``stale`` says of each time that the client was called back whether what it had fetched before comes once more.
    """
    taken: list[Seen] = []
    ranges: list[tuple[int, int]] = []
    own: dict[int, int] = {}
    position = fetched_from = 0
    comes_again, times = iter(stale), 0
    for _ in range(1_000):
        client = Client(batches, fetched_from, 3, committed=True)
        start, polled = position, list[Seen]()
        for seen in client.records():
            if len(polled) == most:
                break
            if seen.offset >= position:
                polled.append(seen)
                position = seen.offset + 1
        if not polled:
            return taken, ranges
        if times and not is_fresh(polled[0], first_at(batches, committed=True)(start), times):
            position, fetched_from, times = start, start, times + 1
            continue
        times = 0
        expected = (start, *(seen.offset + 1 for seen in polled))
        gaps = [index for index, seen in enumerate(polled) if seen.offset != expected[index]]
        fetched_from = position
        if not gaps:
            taken += polled
            continue
        reach = check(
            batches, expected[gaps[0]], polled[gaps[-1]].offset, claims=[record.offset for record in polled], own=own
        )
        if reach is None:
            taken += polled
            continue
        taken += [seen for seen in polled if seen.offset < reach.position]
        if reach.resume > reach.position:
            ranges.append((reach.position, reach.resume))
        position, times = reach.resume, 1
        fetched_from = start if next(comes_again, False) else position
    raise AssertionError("reading does not come to an end")


@given(PARTS, st.integers(1, 5), st.lists(st.booleans(), max_size=6))
@example([("odd", [6]), ("honest", honest(4)), ("honest", honest(6))], 4, [True])
@example([("odd", [6]), ("aborted", honest(4)), ("honest", honest(6))], 4, [True])
@example([("aborted", [0, 1]), ("odd", [-1])], 1, [])
@example([("odd", [6]), ("aborted", [0, 1]), ("odd", [-1]), ("honest", honest(6))], 1, [])
@example([("odd", [6]), ("aborted", [0, 1]), ("odd", [-1])], 1, [])
def test_every_honest_record_is_taken_and_no_range_holds_one(
    parts: list[tuple[str, list[int]]], most: int, stale: list[bool]
) -> None:
    batches = log_of(parts)
    taken, ranges = read_all(batches, most, stale)
    wanted = {(batch.base + n, (batch.base, n)) for batch in batches if batch.writer == "honest" for n in batch.deltas}
    found = [(seen.offset, seen.content) for seen in taken]
    assert wanted <= set(found)
    assert [offset for offset, _ in found] == sorted({offset for offset, _ in found})
    assert not any(start <= offset < end for offset, _ in wanted for start, end in ranges)
    # Readers that take other numbers of records at a time skip the same.
    if all(delta >= 0 for batch in batches for delta in batch.deltas):
        assert read_all(batches, 4) == (taken, ranges)


@given(PARTS, st.booleans(), st.sampled_from([1, 3]))
def test_where_nobody_lies_nothing_is_passed_over(
    parts: list[tuple[str, list[int]]], reported: bool, batches_a_fetch: int
) -> None:
    batches = log_of([part for part in parts if part[0] in ("honest", MARK)])
    last = max((batch.end - 1 for batch in batches if not batch.is_mark), default=-1)
    reach = check(batches, 0, last, reported=reported, batches_a_fetch=batches_a_fetch)
    assert reach is None or reach.position == reach.resume > 0
    assert reach is None or not reported or batches_a_fetch > 1


def test_the_range_is_the_batch_and_its_copies() -> None:
    assert check(log_of([("odd", [6]), *[("honest", [0])] * 6]), 0, 6) == ReadableEnd(0, 1)
    assert check(log_of([("odd", [0, 1, 9, 2]), ("honest", honest(9))]), 2, 9) == ReadableEnd(2, 4)
    # Each record but the last one is where it claims to be, within its batch.
    assert check(log_of([("odd", [1, 2, 3]), ("honest", [0])]), 0, 1) == ReadableEnd(0, 3)
    assert check(log_of([("copy", [9])] * 4 + [("honest", honest(8))]), 0, 9) == ReadableEnd(0, 4)
    # The client fetches from behind the last record, which is what the first one claims.
    assert check(log_of([("odd", [5, 4]), ("honest", honest(6))]), 0, 5) == ReadableEnd(0, 2)


def test_a_log_that_begins_later_and_one_that_ends_are_no_lies() -> None:
    batches = [Batch(50, honest(3), "honest")]
    assert check(batches, 0, 50, log_start=50) is None
    assert check(batches, 0, 50, log_start=50, reported=False) == ReadableEnd(51, 51)
    for position, reached in ((0, 7), (8, 8)):
        reach = check_claims(partial(NotSeen, position), first_at([]), first_at([]), range(7, 10), [9], lambda: 0, {})
        assert reach == (reached, reached)


def test_a_check_goes_on_where_the_last_one_of_the_same_gap_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(odd_offsets, "MOST_PROBES", 3)
    copies = log_of([("copy", [9])] * 7)
    own: dict[int, int] = {}
    assert [check(copies, 0, 9, own=own) for _ in range(3)] == [ReadableEnd(0, 0), ReadableEnd(0, 0), ReadableEnd(0, 7)]
    assert own == {}


def test_fetches_are_known_from_the_log_of_the_client() -> None:
    fetch = "FETCH [x] [h:1/1]: h:1/1: Fetch topic {} [0] at offset {} (leader epoch 0, current leader epoch 0, v{})"
    came = (
        "CONSUME [x] [thrd:h:1/1]: h:1/1: Enqueue {} message(s) (2 bytes, 1 ops) on t [0] fetch queue "
        "(qlen 0, v{}, last_offset 1, {} ctrl msgs, 0 aborted msgsets, uncompressed)"
    )
    seen = FetchLog()
    seen.begin(("t", 0))
    lines = [
        # Another assignment's, under way until now.
        fetch.format("t", 90, 2), came.format(5, 2, 0), fetch.format("u", 4, 9),
        fetch.format("t", 3, 4), came.format(2, 4, 0),
        fetch.format("t", 5, 4), came.format(1, 4, 1),
        fetch.format("t", 6, 4), came.format(2, 4, 1), came.format(7, 2, 0),
        fetch.format("t", 8, 4),
    ]  # fmt: skip
    for line in lines:
        seen.emit(logging.LogRecord("probe", logging.DEBUG, "", 0, line, (), None))
    assert [seen.fetch_of(number) for number in range(4)] == [(2, 3, True), None, (1, 6, False), None]
    assert seen.position == 8
    seen.begin(("t", 0))
    assert (seen.fetch_of(0), seen.position) == (None, 0)
