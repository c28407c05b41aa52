"""What a run's times say: percentiles, whether the pipeline kept up, and the delay split by stage. Pure functions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.arrivals import Columns, Stamps

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
LEAST_ANSWERED = 0.999
BACKLOG_S = 1.0
"""A pipeline that keeps up is less than so much of the load behind when the load ends."""
LEAST_FOR_QUANTILES = 20

STAGES = (
    "due to sent",
    "sent to appended",
    "appended to card batch",
    "card batch to profiled",
    "profiled to score batch",
    "score batch to decision",
    "decision to read",
)
"""In order; each ends where the next begins.

``due`` is the schedule; ``appended`` the broker's stamp on the transaction, in whole milliseconds; the batches begin
when an agent begins to work on one (``ingested_at``, ``decided_at``); ``profiled`` and ``decision`` are the moments at
which those records were handed to the agent's producer, so that what follows is the commit, the fetch and the wait for
the next agent to be free.
"""


@dataclass(frozen=True, slots=True)
class Sent:
    """What the generator did; arrays of n transactions, monotonic nanoseconds."""

    number: NDArray[np.int64]
    scheduled_ns: NDArray[np.int64]
    sent_ns: NDArray[np.int64]


def percentiles_ms(delays_ms: NDArray[np.float64]) -> dict[str, float] | None:
    """Quantiles that occurred among ``delays_ms``; None for too few of them.

    >>> percentiles_ms(np.arange(1, 1001.0))["p99"]
    990.0
    """
    if len(delays_ms) < LEAST_FOR_QUANTILES:
        return None
    found = np.quantile(delays_ms, list(QUANTILES.values()), method="inverted_cdf")
    return {name: round(float(value), 2) for name, value in zip(QUANTILES, found, strict=True)}


def first_arrivals(number: NDArray[np.int64], received_ns: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """When each of ``count`` transactions was answered first, -1 where it was not."""
    answered = np.full(count, np.iinfo(np.int64).max)
    np.minimum.at(answered, number, received_ns)
    answered[answered == np.iinfo(np.int64).max] = -1
    return answered


def verdict(scheduled_ns: NDArray[np.int64], answered_ns: NDArray[np.int64], rate: float) -> dict[str, Any]:
    """Whether the pipeline kept up with what was due between the first and the last of ``scheduled_ns``."""
    end_ns = int(scheduled_ns.max())
    answered = answered_ns >= 0
    behind = int((~answered | (answered_ns > end_ns)).sum())
    share = float(answered.mean())
    return {
        "answered": round(share, 5),
        "behind_at_end": behind,
        "keeps_up": share >= LEAST_ANSWERED and behind <= BACKLOG_S * rate,
    }


def answers(
    sent: Sent,
    measured: NDArray[np.bool_],
    decisions: Columns,
    alerts: Columns,
    numbers: Mapping[str, int],
    rate: float,
) -> dict[str, Any]:
    """Percentiles of decisions and alerts, and whether the engine kept up.

    ``measured`` chooses transactions of ``sent``; ``numbers`` gives a transaction's place among them by its identity.
    """
    found = {}
    for name, columns in (("decisions", decisions), ("alerts", alerts)):
        places = _places(columns, numbers)
        ours = places >= 0
        found[name] = first_arrivals(places[ours], columns.received_ns[ours], len(sent.number))
    result = verdict(sent.scheduled_ns[measured], found["decisions"][measured], rate)
    result["sent_late_ms"] = percentiles_ms((sent.sent_ns - sent.scheduled_ns)[measured] / 1e6)
    for name, answered_ns in found.items():
        answered = measured & (answered_ns >= 0)
        delays_ms = (answered_ns - sent.scheduled_ns)[answered] / 1e6
        result[f"{name}_count"] = int(answered.sum())
        result[f"{name}_ms"] = percentiles_ms(delays_ms) if result["keeps_up"] else None
    return result


def _places(columns: Columns, numbers: Mapping[str, int]) -> NDArray[np.int64]:
    return np.array([numbers.get(transaction, -1) for transaction in columns.transaction], np.int64)


def summarise(
    sent: Sent,
    measured: NDArray[np.bool_],
    decisions: Columns,
    alerts: Columns,
    numbers: Mapping[str, int],
    appended: Stamps,
    profiled: Stamps,
    wall_minus_monotonic_ns: int,
    rate: float,
) -> dict[str, Any]:
    """`answers`, and the stages' medians and p99."""
    result = answers(sent, measured, decisions, alerts, numbers, rate)
    chosen = _places(decisions, numbers)
    rows = np.flatnonzero(chosen >= 0)
    rows = rows[measured[chosen[rows]]]
    result["stages_ms"] = _stages(sent, chosen[rows], rows, decisions, appended, profiled, wall_minus_monotonic_ns)
    return result


def _stages(
    sent: Sent,
    number: NDArray[np.int64],
    rows: NDArray[np.intp],
    decisions: Columns,
    appended: Stamps,
    profiled: Stamps,
    wall_minus_monotonic_ns: int,
) -> dict[str, dict[str, float] | None]:
    def wall_ms(monotonic_ns: NDArray[np.int64]) -> NDArray[np.float64]:
        return (monotonic_ns + wall_minus_monotonic_ns) / 1e6

    moments = [
        wall_ms(sent.scheduled_ns[number]),
        wall_ms(sent.sent_ns[number]),
        appended.stamps_of(decisions.partition[rows], decisions.offset[rows]),
        decisions.ingested_us[rows] / 1e3,
        profiled.stamps_of(decisions.log_partition[rows], decisions.log_offset[rows]),
        decisions.decided_us[rows] / 1e3,
        decisions.timestamp_ms[rows].astype(np.float64),
        wall_ms(decisions.received_ns[rows]),
    ]
    split = {}
    for name, begin, end in zip(STAGES, moments[:-1], moments[1:], strict=True):
        delays_ms = end - begin
        split[name] = percentiles_ms(delays_ms[~np.isnan(delays_ms)])
    return split
