"""What is calculated from a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

import numpy as np
import numpy.typing as npt

WARM_UP: Final = 0.2
"""Share of an engine's decisions that are not measured: start-up, compilation, first fetches."""
LONGEST_SILENCE: Final = 0.25
"""Share of the measured time above which a pause in the output says that it comes in bursts too long to measure."""


class Unmeasurable(ValueError):
    """A run from whose output no rate can be told."""


@dataclass(frozen=True)
class Sample:
    """CPU seconds used so far, and memory in use, at a moment of the wall clock that stamps the output too."""

    at_ms: float
    engine_cpu_s: float
    broker_cpu_s: float
    engine_rss_bytes: int


@dataclass(frozen=True)
class Measurement:
    """One run of one engine."""

    records: int
    rate_per_s: float
    engine_cpu_us: float
    """CPU time of the engine's processes for each transaction."""
    broker_cpu_us: float
    peak_rss_bytes: int


def measurement(appended_ms: npt.NDArray[np.int64], samples: Sequence[Sample]) -> Measurement:
    """The run whose decisions were appended at ``appended_ms`` (in order), after its warm-up.

    The rate is the number of decisions after the moment at which the warm-up's last one was appended, divided by the
    time from then to the last decision; so an engine that writes in bursts is not credited with one for nothing.
    Raises ``Unmeasurable`` when the measured time holds too few bursts for that.
    """
    begin_ms, end_ms = appended_ms[int(WARM_UP * len(appended_ms))], appended_ms[-1]
    count, span_ms = int((appended_ms > begin_ms).sum()), int(end_ms - begin_ms)
    silence_ms = int(np.diff(appended_ms[appended_ms >= begin_ms]).max(initial=0))
    if not count or silence_ms > LONGEST_SILENCE * span_ms:
        raise Unmeasurable(
            f"decisions came in bursts: none for {silence_ms:,} ms of the {span_ms:,} ms after the warm-up; "
            "give the engine more records"
        )
    at_ms = [sample.at_ms for sample in samples]
    engine, broker = (
        np.interp([begin_ms, end_ms], at_ms, used)
        for used in ([sample.engine_cpu_s for sample in samples], [sample.broker_cpu_s for sample in samples])
    )
    return Measurement(
        records=len(appended_ms),
        rate_per_s=1_000 * count / span_ms,
        engine_cpu_us=1e6 * float(engine[1] - engine[0]) / count,
        broker_cpu_us=1e6 * float(broker[1] - broker[0]) / count,
        peak_rss_bytes=max(sample.engine_rss_bytes for sample in samples),
    )


def summary(runs: Sequence[Measurement]) -> dict[str, float]:
    """Medians of an engine's runs; ``spread`` is (largest - smallest rate) / median."""
    rates = [run.rate_per_s for run in runs]
    return {
        "runs": len(runs),
        "records": runs[0].records,
        "rate_per_s": median(rates),
        "spread": (max(rates) - min(rates)) / median(rates),
        "engine_cpu_us": median(run.engine_cpu_us for run in runs),
        "broker_cpu_us": median(run.broker_cpu_us for run in runs),
        "peak_rss_bytes": max(run.peak_rss_bytes for run in runs),
    }


def ratios(summaries: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Every engine's rate over every other's."""
    return {
        item: {other: mine["rate_per_s"] / theirs["rate_per_s"] for other, theirs in summaries.items() if other != item}
        for item, mine in summaries.items()
    }
