"""The end of an unreadable batch is found exactly, and nothing readable lies within the range."""

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.kafka import unreadable
from pipeline.kafka.unreadable import Answer, EmptyFetches, NoAnswer, range_end


class Part(NamedTuple):
    """Consecutive offsets of a log: a batch that can be read, one that cannot (silently), or marks without a record."""

    kind: str
    length: int


PARTS = st.lists(
    st.builds(Part, st.sampled_from(["readable", "unreadable", "silent", "marks"]), st.integers(1, 70)),
    min_size=1,
    max_size=12,
)


def spans(parts: Sequence[Part]) -> list[tuple[str, int, int]]:
    """Kind, first offset and offset behind the last one of each part."""
    placed, offset = [], 0
    for part in parts:
        placed.append((part.kind, offset, offset + part.length))
        offset += part.length
    return placed


def prober(parts: Sequence[Part], probes: list[int]) -> Callable[[int], Answer]:
    """What librdkafka answers over such a log: a batch can be read, or fails as a whole under its first offset.

    A silent one is silent from every offset, and names none.
    """

    def probe(offset: int) -> Answer:
        probes.append(offset)
        for kind, first, end in spans(parts):
            if end > offset and kind == "silent":
                return Answer(offset, readable=False, silent=True)
            if end > offset and kind != "marks":
                return Answer(max(first, offset), True) if kind == "readable" else Answer(first, False)
        return Answer(sum(part.length for part in parts), True)

    return probe


@given(PARTS, st.data())
def test_a_range_ends_with_its_batch_and_the_marks_behind_it(parts: list[Part], data: st.DataObject) -> None:
    placed = spans(parts)
    bad = [index for index, (kind, _, _) in enumerate(placed) if kind == "unreadable"]
    if not bad:
        return
    index = data.draw(st.sampled_from(bad))
    _, first, end = placed[index]
    start = data.draw(st.integers(first, end - 1))
    next_kind, following = next(((k, at) for k, at, _ in placed[index + 1 :] if k != "marks"), ("", placed[-1][2]))
    probes: list[int] = []
    found = range_end(prober(parts, probes), start, placed[-1][2])
    assert end <= found <= following
    assert found == following or following == placed[-1][2] or next_kind == "silent"
    assert all(start <= probe < placed[-1][2] for probe in probes)


@given(PARTS, st.data())
def test_a_silent_range_holds_no_record_and_reaches_the_next_one(parts: list[Part], data: st.DataObject) -> None:
    placed = spans(parts)
    log_end = placed[-1][2]
    silent = [index for index, (kind, _, _) in enumerate(placed) if kind == "silent"]
    assume(silent)
    index = data.draw(st.sampled_from(silent))
    start = data.draw(st.integers(placed[index][1], placed[index][2] - 1))
    found = range_end(prober(parts, []), start, log_end)
    assert placed[index][2] <= found
    assert all(kind in ("silent", "marks") for kind, first, end in placed if first < found and end > start)
    assert found == next((at for kind, at, _ in placed[index:] if kind in ("readable", "unreadable")), log_end)


def test_a_silent_range_has_a_longest_length_and_ends_with_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unreadable, "MOST_SILENT", 10)
    parts = [Part("silent", 100)]
    probes: list[int] = []
    assert range_end(prober(parts, probes), 3, 100) == 13
    assert probes == list(range(3, 14))

    def dies(offset: int) -> Answer:
        if offset == 13:
            raise NoAnswer("no broker")
        return prober(parts, [])(offset)

    with pytest.raises(NoAnswer):
        range_end(dies, 3, 100)


def test_a_silent_range_begins_where_the_log_does() -> None:
    answers = {0: Answer(500, readable=False, silent=True), 501: Answer(501, readable=True)}
    assert range_end(answers.__getitem__, 0, 600) == 501


FETCH = "FETCH [x] [thrd:h:1/1]: h:1/1: Fetch topic t [0] at offset {} (leader epoch -1, current leader epoch 0, v{})"
CAME = (
    "CONSUME [x] [thrd:h:1/1]: h:1/1: Enqueue {} message(s) ({} bytes, {} ops) on t [0] fetch queue "
    "(qlen 0, v{}, last_offset {}, {} ctrl msgs, {} aborted msgsets, gzip)"
)


def nothing(version: int, controls: int = 0, aborted: int = 0) -> str:
    return CAME.format(0, 0, 0, version, -1, controls, aborted)


@pytest.mark.parametrize(
    ("lines", "silent"),
    [
        ([FETCH.format(3, 6), nothing(6)] * 2, True),
        ([FETCH.format(3, 6), nothing(6)], False),
        # Marks, and what was aborted, stand before it.
        ([FETCH.format(3, 6), nothing(6, aborted=1), *[FETCH.format(5, 6), nothing(6)] * 2], True),
        ([FETCH.format(3, 6), nothing(6, aborted=1)] * 3, False),
        ([FETCH.format(3, 6), nothing(6, controls=1)] * 3, False),
        # The client goes on behind a batch that is only cut short.
        ([FETCH.format(3, 6), nothing(6), FETCH.format(5, 6), CAME.format(1, 9, 1, 6, 5, 0, 0)], False),
        # Another assignment, from another offset.
        ([FETCH.format(2, 4), nothing(4)] * 2 + [FETCH.format(3, 6)], False),
        ([FETCH.format(3, 6), nothing(4)] * 2, False),
        ([FETCH.format(3, 6), CAME.format(2, 9, 2, 6, 4, 0, 0)] * 2, False),
        ([FETCH.format(3, 6)] * 9, False),
    ],
)
def test_a_client_that_fetches_and_delivers_nothing_is_seen_in_its_log(lines: list[str], silent: bool) -> None:
    seen = EmptyFetches()
    for line in lines:
        seen.emit(logging.LogRecord("probe", logging.DEBUG, "", 0, line, (), None))
    assert (seen.silent_start(3) == 3) == silent
    seen.clear()
    assert seen.silent_start(3) is None


def test_the_search_takes_few_probes() -> None:
    probes: list[int] = []
    parts = [Part("unreadable", 1_000_000), Part("readable", 5_000_000)]
    assert range_end(prober(parts, probes), 17, 6_000_000) == 1_000_000
    assert len(probes) < 45


def test_what_can_be_read_after_all_is_no_range() -> None:
    assert range_end(prober([Part("readable", 9)], []), 4, 9) == 4
