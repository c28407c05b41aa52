"""Logs that are out of order become one order of time, however they are read."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from pipeline.backtest.input.merge import LogPart, by_time
from pipeline.engine.records.columns import Transactions

HOUR = 3_600_000_000


def rows(key: NDArray[np.int64], row: NDArray[np.int64]) -> Transactions:
    n, text = len(key), pa.array([str(number) for number in row.tolist()], pa.string())
    none, numbers = np.zeros(n, np.int64), np.zeros(n)
    return Transactions(row, key, text, text, text, key, text, none, none, text, np.ones(n, np.bool_), numbers, numbers)


def log(seed: int, number: int, size: int = 400) -> LogPart[Transactions]:
    """Arrivals in order, of events up to ten hours before, some at one instant."""
    random = np.random.default_rng(seed)
    arrived_us = np.cumsum(random.integers(0, 2, size) * HOUR) // 4
    late_us = random.choice([0, 0, HOUR, 10 * HOUR], size)
    return LogPart(rows(arrived_us - late_us, np.arange(size) * 8 + number), arrived_us)


def cut(part: LogPart[Transactions], size: int) -> Iterator[LogPart[Transactions]]:
    for first in range(0, len(part.rows), size):
        source = slice(first, first + size)
        yield LogPart(part.rows.take(source), part.arrived_us[source])


def merged(
    logs: list[LogPart[Transactions]], sizes: list[int], margin_us: int
) -> tuple[list[int], list[int], list[int]]:
    late: list[int] = []
    parts = [cut(log, size) for log, size in zip(logs, sizes, strict=True)]
    found = list(by_time(parts, margin_us, lambda refused: late.extend(refused.row.tolist())))
    return (
        [key for part in found for key in part.key.tolist()],
        [row for part in found for row in part.row.tolist()],
        sorted(late),
    )


@pytest.mark.parametrize("chunk", [1, 64, 16_384])
def test_the_order_is_that_of_time_and_place_alone(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.backtest.input.merge.CHUNK_ROWS", chunk)
    logs = [log(seed, seed) for seed in range(3)]
    keys, places, late = merged(logs, [7, 400, 31], 12 * HOUR)
    everything = sorted(
        (key, row) for log in logs for key, row in zip(log.rows.key.tolist(), log.rows.row.tolist(), strict=True)
    )
    assert (keys, places, late) == ([key for key, _ in everything], [row for _, row in everything], [])


def test_what_is_too_late_depends_on_the_log_alone() -> None:
    logs = [log(seed, seed) for seed in range(2)]
    outcomes = [merged(logs, sizes, 5 * HOUR) for sizes in ([400, 400], [3, 90], [1, 1])]
    assert outcomes[0] == outcomes[1] == outcomes[2]
    keys, places, late = outcomes[0]
    clocks = {
        row: (key, int(newest))
        for log in logs
        for key, row, newest in zip(
            log.rows.key.tolist(), log.rows.row.tolist(), np.maximum.accumulate(log.arrived_us), strict=True
        )
    }
    assert late == sorted(row for row, (key, newest) in clocks.items() if key < newest - 5 * HOUR)
    assert 0 < len(late) < len(clocks)
    assert keys == sorted(keys)
    assert sorted([*places, *late]) == sorted(clocks)


def test_empty_logs_and_no_logs_have_no_rows() -> None:
    assert merged([], [], HOUR) == ([], [], [])
    assert sorted(merged([log(0, 0, 0), log(1, 1, 3)], [5, 5], 12 * HOUR)[1]) == [1, 9, 17]


def test_rows_are_given_before_the_logs_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is that of a margin: a long log is not read whole before its first row is given."""
    monkeypatch.setattr("pipeline.backtest.input.merge.CHUNK_ROWS", 16)
    read = 0

    def counted(parts: Iterator[LogPart[Transactions]]) -> Iterator[LogPart[Transactions]]:
        nonlocal read
        for part in parts:
            read += len(part.rows)
            yield part

    logs = [counted(cut(log(seed, seed, 4_000), 8)) for seed in range(2)]
    next(by_time(logs, 12 * HOUR, lambda _: None))
    assert read < 1_000
