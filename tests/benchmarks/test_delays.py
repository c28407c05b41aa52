"""What is made of a run's times."""

import numpy as np
import pytest

from tests.benchmarks import report
from tests.benchmarks.arrivals import Columns, Stamps
from tests.benchmarks.delays import STAGES, Sent, first_arrivals, percentiles_ms, summarise, verdict
from tests.benchmarks.latency import describe_short

MS = 1_000_000
COUNT = 1_000
WALL_NS = 1_700_000_000_000 * MS
"""The wall clock at monotonic zero."""


def run(delay_ms: float, answered: int = COUNT) -> dict[str, object]:
    """1,000 a second; each is sent 1 ms late, and each stage then takes a sixth of the rest of ``delay_ms``."""
    number = np.arange(COUNT)
    scheduled_ns = number * MS
    step_ms = (delay_ms - 1) / 6
    wall_ms = (WALL_NS + scheduled_ns) / MS + 1
    rows = number[:answered]
    places = {0: (number, np.rint(wall_ms + step_ms).astype(np.int64))}
    profiled = {0: (number, np.rint(wall_ms + 3 * step_ms).astype(np.int64))}
    zero = np.zeros(answered, np.int64)
    decisions = Columns(
        transaction=[f"t{n}" for n in rows],
        received_ns=scheduled_ns[rows] + round(delay_ms * MS),
        timestamp_ms=np.rint(wall_ms + 5 * step_ms).astype(np.int64)[rows],
        partition=zero,
        offset=rows,
        log_partition=zero,
        log_offset=rows,
        ingested_us=np.rint(1e3 * (wall_ms + 2 * step_ms)).astype(np.int64)[rows],
        decided_us=np.rint(1e3 * (wall_ms + 4 * step_ms)).astype(np.int64)[rows],
    )
    none = np.empty(0, np.int64)
    return summarise(
        Sent(number, scheduled_ns, scheduled_ns + MS),
        scheduled_ns >= 100 * MS,
        decisions,
        Columns([], *(none for _ in range(8))),
        {f"t{n}": n for n in range(COUNT)},
        Stamps(places),
        Stamps(profiled),
        WALL_NS,
        1_000.0,
    )


def test_quantiles_are_values_that_occurred() -> None:
    found = percentiles_ms(np.arange(1.0, 10_001.0))
    assert found == {"p50": 5_000, "p90": 9_000, "p99": 9_900, "p99.9": 9_990, "max": 10_000}
    assert percentiles_ms(np.arange(5.0)) is None


def test_the_first_of_several_answers_counts() -> None:
    assert first_arrivals(np.array([1, 0, 1]), np.array([50, 60, 40]), 3).tolist() == [60, 40, -1]


def test_keeping_up_means_answering_all_and_not_falling_behind() -> None:
    scheduled = np.arange(10_000) * MS
    assert verdict(scheduled, scheduled + 20 * MS, 1_000)["keeps_up"]
    missing = np.where(np.arange(10_000) % 100 == 0, -1, scheduled + 20 * MS)
    assert not verdict(scheduled, missing, 1_000)["keeps_up"]
    # Answered at half the rate at which they come.
    assert verdict(scheduled, 2 * scheduled, 1_000) == {
        "answered": 1.0,
        "behind_at_end": 5_000,
        "keeps_up": False,
    }


def test_latency_counts_from_the_schedule_and_its_stages_add_up() -> None:
    result = run(61.0)
    assert result["keeps_up"]
    assert result["decisions_count"] == 900
    assert result["decisions_ms"] == dict.fromkeys(("p50", "p90", "p99", "p99.9", "max"), 61.0)
    assert result["sent_late_ms"]["p50"] == 1.0  # type: ignore[index]
    stages: dict[str, dict[str, float]] = result["stages_ms"]  # type: ignore[assignment]
    assert tuple(stages) == STAGES
    assert stages["due to sent"]["p50"] == pytest.approx(1.0, abs=0.01)
    assert sum(stage["p50"] for stage in stages.values()) == pytest.approx(61.0, abs=0.1)


def test_a_run_that_does_not_keep_up_gives_no_percentiles() -> None:
    result = run(61.0, answered=900)
    assert not result["keeps_up"]
    assert result["decisions_ms"] is None
    table = report.latency({"rows": [{"mode": "exactly_once", "rate": 1_000, **result}]})
    assert table.rows == ()
    assert "does not keep up" in table.notes[0]
    assert "does not keep up" in describe_short({"mode": "exactly_once", "rate": 1_000, **result})


def test_stamps_are_found_by_place() -> None:
    stamps = Stamps({0: (np.array([3, 5]), np.array([30, 50])), 2: (np.array([1]), np.array([10]))})
    found = stamps.stamps_of(np.array([0, 0, 2, 1, 0]), np.array([5, 4, 1, 1, 9]))
    assert np.array_equal(found, [50, np.nan, 10, np.nan, np.nan], equal_nan=True)
