"""The end of an unreadable batch is found exactly, and nothing readable lies within the range."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from pipeline.kafka.unreadable import Answer, range_end


class Part(NamedTuple):
    """Consecutive offsets of a log: a batch that can be read, one that cannot, or marks without a record."""

    kind: str
    length: int


PARTS = st.lists(
    st.builds(Part, st.sampled_from(["readable", "unreadable", "marks"]), st.integers(1, 70)), min_size=1, max_size=12
)


def spans(parts: Sequence[Part]) -> list[tuple[str, int, int]]:
    """Kind, first offset and offset behind the last one of each part."""
    placed, offset = [], 0
    for part in parts:
        placed.append((part.kind, offset, offset + part.length))
        offset += part.length
    return placed


def prober(parts: Sequence[Part], probes: list[int]) -> Callable[[int], Answer]:
    """What librdkafka answers over such a log: a batch can be read, or fails as a whole under its first offset."""

    def probe(offset: int) -> Answer:
        probes.append(offset)
        for kind, first, end in spans(parts):
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
    following = next((at for kind, at, _ in placed[index + 1 :] if kind != "marks"), placed[-1][2])
    probes: list[int] = []
    found = range_end(prober(parts, probes), start, placed[-1][2])
    assert end <= found <= following
    assert found == following or following == placed[-1][2]
    assert all(start <= probe < placed[-1][2] for probe in probes)


def test_the_search_takes_few_probes() -> None:
    probes: list[int] = []
    parts = [Part("unreadable", 1_000_000), Part("readable", 5_000_000)]
    assert range_end(prober(parts, probes), 17, 6_000_000) == 1_000_000
    assert len(probes) < 45


def test_what_can_be_read_after_all_is_no_range() -> None:
    assert range_end(prober([Part("readable", 9)], []), 4, 9) == 4
