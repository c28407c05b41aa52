"""Where the newest batch began, as decisions tell."""

import pytest

from pipeline.kafka.checks.offset_checks import ResultBatch, _newer

NOON, LATER = "2024-05-01T12:00:00Z", "2024-05-01T12:00:01Z"


@pytest.mark.parametrize(
    ("numbers", "start"),
    [
        # One batch, in two partitions of decisions.
        ([(7, NOON, 5), (9, NOON, 6), (8, NOON, 4)], 7),
        # Whichever partition is read first.
        ([(7, NOON, 5), (12, LATER, 9), (13, LATER, 8)], 12),
        ([(12, LATER, 9), (13, LATER, 8), (7, NOON, 5)], 12),
        # `profiled` was made anew: its offsets begin again.
        ([(900, NOON, 5), (3, LATER, 9)], 3),
    ],
)
def test_the_start_of_the_newest_batch(numbers: list[tuple[int, str, int]], start: int) -> None:
    known: ResultBatch | None = None
    for offset, decided_at, timestamp_ms in numbers:
        known = _newer(known, ResultBatch(offset, offset + 1, timestamp_ms, decided_at))
    assert known is not None
    assert known.start == start
