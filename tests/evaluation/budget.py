"""Part ``budget``: cases a day by a fixed threshold and by a pace, in each label regime and each world."""

from collections.abc import Collection, Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import numpy as np

from pipeline.decision.budget import case_numbers, case_threshold, first_alerts
from pipeline.decision.pacing import PacingOptions
from pipeline.scoring.blend import sigmoid
from schemas.times import EPOCH, US_PER_DAY
from tests.evaluation import attacks, detection
from tests.evaluation.detection import ALL, FRAUDS, LATE, TOP, at
from tests.evaluation.histories import History
from tests.evaluation.parts import Found, Part, Table, Unit, markdown
from tests.evaluation.worlds.families import CHOOSING, FAMILIES
from tests.evaluation.worlds.part import history_of_world, scored_days
from tests.helpers.paced import Stream, paced

REGIMES: Final = {"all labels": ALL, "frauds only": FRAUDS, "frauds late": LATE, "frauds early": attacks.REGIME}
SEEDS: Final = (1, 2, 3)
_WATCHED: Final = timedelta(days=7)
"""Before the days that count; a pace begins with their scores."""


def kept(history: History, start: datetime, end: datetime) -> Found:
    """Return cases of each day, and the share of hindsight's frauds, of a version that is trained at the start.

    Hindsight is the best fixed threshold of the days, chosen on them.
    """
    model, threshold = history.version(start, early=history.regime == attacks.REGIME)
    rows, data = history.rows(start - _WATCHED, end), history.data
    times_us, fraud, score = data.times[rows], data.fraud[rows], sigmoid(history.logit(model, rows))
    case, day = case_numbers(data.card[rows], times_us), times_us // US_PER_DAY - (start - EPOCH).days
    counts, days = day >= 0, (end - start).days
    best = case_threshold(score[counts], case[counts], days, TOP)
    most = np.count_nonzero(fraud & counts & (score >= best))
    by_pace = paced(Stream(times_us, score, case.tolist()), PacingOptions(TOP), threshold).alert
    found = {}
    for name, alert in (("fixed", score >= threshold), ("paced", by_pace)):
        first = first_alerts(case, alert)
        cases = np.bincount(day[first[counts[first]]], minlength=days)
        found[name] = {"cases": cases.tolist(), "frauds": np.count_nonzero(fraud & counts & alert) / most}
    return found


def of_file(file: Path, regime: str, start: str, end: str) -> Found:
    """Return the figures of some days of the file."""
    return kept(History.from_file(file, REGIMES[regime]), at(start), at(end))


def of_world(family: str, seed: int) -> Found:
    """Return the figures of the last days of a seed's world."""
    history = history_of_world(FAMILIES[family].frame(seed))
    return kept(history, *scored_days(history.data))


def units(file: Path, final: bool, only: Collection[str]) -> list[Unit]:
    """Return a unit for each regime and fold, and for each family and seed; ``final`` alone adds those that judge."""
    folds = detection.FINAL if final else detection.FOLDS
    families = FAMILIES.values() if final else CHOOSING
    return [
        Unit(f"{regime}, {start} to {end}", of_file, (file, regime, start, end))
        for regime in REGIMES
        if regime in only
        for start, end in folds
    ] + [
        Unit(f"{family.name} {seed}", of_world, (family.name, seed))
        for family in families
        if family.name in only
        for seed in SEEDS
    ]


def tables(found: Mapping[str, Found]) -> Iterator[Table]:
    """Yield cases a day, their share of days within 30 %, and the frauds of each."""
    head = ("days", "fixed: cases a day", "within 30 %", "frauds", "paced: cases a day", "within 30 %", "frauds")
    rows = []
    for name, of_unit in found.items():
        rows.append([name])
        for figures in of_unit.values():
            cases = np.array(figures["cases"])
            within = np.mean(np.abs(cases / TOP - 1.0) <= 0.3)
            rows[-1] += [f"{cases.mean():.1f}", f"{within:.0%}", f"{figures['frauds']:.1%}"]
    yield markdown(f"Cases a day for a budget of {TOP}, and frauds as a share of hindsight's", head, rows)


PART: Final = Part((*REGIMES, *FAMILIES), units, tables)
