"""Part ``attacks``: a new kind of fraud in real data, by how LightGBM is renewed, with and without the online model."""

import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.learning.regimes import LabelRegime
from pipeline.settings import Settings
from pipeline.training.fit import TrainingConfig
from tests.evaluation.detection import TOP, Data, Scored, at, before, figures
from tests.evaluation.gate import gated
from tests.evaluation.histories import DEFAULTS, RIVER_WARM_UP, History
from tests.evaluation.parts import Found, Part, Table, Unit, compared, markdown

DAYS: Final = ("2018-06-24", "2018-07-08")
"""The attack begins with the first of them."""
ATTACK: Final = 9
"""Its `TX_FRAUD_SCENARIO`."""
REGIME: Final = LabelRegime(reported="frauds-only", delay_days=7.0, early_share=0.3)
ALONE: Final = "alone"
RIVER: Final = "with River"
GATED: Final = "with River behind its gate"
SOONER: Final = "with River and early reports"
SOONER_GATED: Final = "with early reports, behind its gate"
WAYS: Final = (RIVER, GATED, SOONER, SOONER_GATED)
GATES: Final = {RIVER: GATED, SOONER: SOONER_GATED}
"""Names of the same behind the gate."""
EARLY_MATURITY: Final = Settings(maturity_days=0.25)
"""Settings that presume legitimate after six hours without a report; a report by then stands for all."""
FROZEN: Final = "frozen"
DAILY: Final = "daily"
EARLY: Final = "daily, early reports"
AFTERWARDS: Final = "afterwards, early reports"
"""Trained when the attack is over, by the reports of then: no renewal before knew more of it. Without River."""
SCHEDULES: Final = (FROZEN, DAILY, EARLY, AFTERWARDS)
LAST_DAYS: Final = 7


@dataclass(frozen=True, slots=True)
class Attack:
    """A kind of fraud that nobody has seen: cards at merchants that are not theirs, at night."""

    a_day: int = 39
    a_card: int = 1
    """Frauds of one card, within ``within_minutes``."""
    within_minutes: float = 10.0
    first_hour: float = 0.0
    last_hour: float = 4.0
    least: float = 80.0
    most: float = 220.0
    seed: int = 1


NO_ATTACK: Final = "no attack"
BURSTS: Final = "bursts"
STRANGERS: Final = "strangers"
ATTACKS: Final[dict[tuple[str, int], Attack | None]] = {
    (NO_ATTACK, 0): None,
    **{(BURSTS, seed): Attack(seed=seed, a_card=3) for seed in (1, 2, 3, 4, 5)},
    **{(STRANGERS, seed): Attack(seed=seed) for seed in (1, 2)},
}
"""Attacks by kind and seed: three frauds of a card within minutes, or one that hardly any feature shows."""


def attacked(frame: pd.DataFrame, attack: Attack, start: datetime, end: datetime) -> pd.DataFrame:
    """Return a history in the Handbook's columns with an attack on some days; its other rows stay as they are."""
    random = np.random.default_rng(attack.seed)
    days = pd.date_range(start, end, inclusive="left").tz_localize(None)
    n = attack.a_day * len(days)
    cards = n // attack.a_card
    rows = frame.iloc[random.integers(len(frame), size=cards).repeat(attack.a_card)].copy()
    hours = random.uniform(attack.first_hour, attack.last_hour, cards).repeat(attack.a_card)
    if attack.a_card > 1:
        hours += random.uniform(0, attack.within_minutes / 60, n)
    rows["TX_DATETIME"] = days.repeat(attack.a_day) + pd.to_timedelta((hours * 3_600).round(), unit="s")
    rows["TERMINAL_ID"] = frame["TERMINAL_ID"].iloc[random.integers(len(frame), size=n)].to_numpy()
    rows["TX_AMOUNT"] = random.uniform(attack.least, attack.most, n).round(2)
    rows["TRANSACTION_ID"] = int(frame["TRANSACTION_ID"].max()) + 1 + np.arange(n)
    rows["TX_FRAUD"], rows["TX_FRAUD_SCENARIO"] = 1, ATTACK
    return pd.concat([frame, rows]).sort_values("TX_DATETIME", kind="stable", ignore_index=True)


@lru_cache(maxsize=1)
def _history(file: Path, attack: Attack | None, start: str, end: str) -> History:
    """Return the history of an attack, or of none; several schedules share it."""
    frame = before(file, end)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "transactions.parquet")
        (frame if attack is None else attacked(frame, attack, at(start), at(end))).to_parquet(path)
        return History(Data(path), REGIME)


def measured(file: Path, attack: Attack | None, schedule: str, start: str, end: str) -> Found:
    """Return the figures of a schedule under an attack: without the online model, with it, and behind its gate."""
    history = _history(file, attack, start, end)
    ways = ways_of(history, schedule, at(start), at(end), {RIVER: DEFAULTS, SOONER: EARLY_MATURITY})
    return {name: _figures(history.data, history.rows(at(start), at(end)), score) for name, score in ways.items()}


def ways_of(
    history: History,
    schedule: str,
    first_day: datetime,
    last_day: datetime,
    online: Mapping[str, Settings],
    config: TrainingConfig | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Return log-odds of some days by a schedule: `ALONE`, with online models, and with each behind its gate.

    Args:
        history: Features and reports.
        schedule: When LightGBM is trained.
        first_day: The first day that is scored.
        last_day: The day after the last one.
        online: Settings by which examples follow from labels, for each name in `GATES`.
        config: How trees are grown.
    """
    early = schedule in (EARLY, AFTERWARDS)
    model, _ = history.version(last_day if schedule == AFTERWARDS else first_day, config=config, early=early)
    rows = [history.rows(first_day - RIVER_WARM_UP, first_day)]
    logit = [history.logit(model, rows[0])]
    for day in (first_day + timedelta(days=number) for number in range((last_day - first_day).days)):
        if schedule in (DAILY, EARLY) and day > first_day:
            model, _ = history.version(day, config=config, early=early)
        rows.append(history.rows(day, day + timedelta(days=1)))
        logit.append(history.logit(model, rows[-1]))
    source, alone = np.concatenate(rows[1:]), np.concatenate(logit[1:])
    ways = {ALONE: alone}
    if schedule == AFTERWARDS:
        return ways
    for name, settings in online.items():
        river = history.corrected(np.concatenate(rows), np.concatenate(logit), first_day, settings)
        ways |= {name: river, GATES[name]: gated(history.data, history.regime, source, alone, river)}
    return ways


def _figures(data: Data, rows: NDArray[np.int64], score: NDArray[np.float64]) -> dict[str, Any]:
    found = Scored()
    found.add(rows, score, np.nan)
    return figures(data, found)


def _name(kind: str, seed: int, schedule: str) -> str:
    return f"{kind}, {schedule}" if kind == NO_ATTACK else f"{kind} {seed}, {schedule}"


_NAMES: Final = {
    _name(kind, seed, schedule): (kind, seed, schedule) for kind, seed in ATTACKS for schedule in SCHEDULES
}


def units(file: Path, final: bool, only: Collection[str]) -> list[Unit]:
    """Return a unit for each attack and schedule; the final weeks are never read."""
    del final
    return [
        Unit(name, measured, (file, ATTACKS[kind, seed], schedule, *DAYS))
        for name, (kind, seed, schedule) in _NAMES.items()
        if name in only
    ]


Runs = Mapping[str, Mapping[int, Found]]
"""Results by schedule and seed."""


def tables(found: Mapping[str, Found]) -> Iterator[Table]:
    """Yield frauds caught a day, without an attack and under each kind: as the mean of its seeds, and of each."""
    of_kinds: dict[str, dict[str, dict[int, Found]]] = {}
    for name, source in found.items():
        kind, seed, schedule = _NAMES[name]
        of_kinds.setdefault(kind, {}).setdefault(schedule, {})[seed] = source
    for kind, runs in of_kinds.items():
        yield _caught(f"Frauds a day among the {TOP} highest scores: {kind}", runs)
        yield _of_river(f"Frauds a day more by the online model: {kind}", runs)
        if kind != NO_ATTACK:
            yield _by_seed(f"The same by seed: {kind}", runs)


def _caught(title: str, runs: Runs) -> Table:
    rows = []
    for schedule, seeds in runs.items():
        alone = _mean_days(seeds, ALONE)
        both = [seed for seed in seeds if seed in runs.get(DAILY, {})]
        against = ""
        if schedule != DAILY and both:
            against = compared(_mean_days(seeds, ALONE, both), _mean_days(runs[DAILY], ALONE, both), 2)
        shares = [share for seed in seeds.values() if (share := share_found(seed[ALONE])) is not None]
        rows.append(
            [
                schedule, ", ".join(map(str, seeds)), f"{alone.mean():.2f}", f"{alone[-LAST_DAYS:].mean():.2f}",
                against,
                f"{np.mean(shares):.3f}" if shares else "",
            ]
        )  # fmt: skip
    head = (
        "LightGBM", "seeds", "caught a day", f"in the last {LAST_DAYS} days", "against daily", "attack found",
    )  # fmt: skip
    return markdown(title, head, rows)


def _of_river(title: str, runs: Runs) -> Table:
    rows = []
    for schedule, seeds in runs.items():
        if schedule == AFTERWARDS:
            continue
        alone = _mean_days(seeds, ALONE)
        rows.append([schedule, *(compared(_mean_days(seeds, way), alone, 2) for way in WAYS)])
    return markdown(title, ("LightGBM", *WAYS), rows)


def _by_seed(title: str, runs: Runs) -> Table:
    columns = {
        f"{schedule}, {way}": (runs[schedule], way)
        for schedule in runs
        for way in (ALONE, RIVER)
        if (schedule, way) != (AFTERWARDS, RIVER)
    }
    rows = [
        [
            str(seed),
            *(f"{_days(seeds[seed][way]).mean():.2f}" if seed in seeds else "" for seeds, way in columns.values()),
        ]
        for seed in sorted({seed for seeds in runs.values() for seed in seeds})
    ]
    return markdown(title, ("seed", *columns), rows)


def _days(row: Mapping[str, Any]) -> NDArray[np.float64]:
    return TOP * np.array(row["transaction_precision"])


def _mean_days(seeds: Mapping[int, Found], way: str, chosen: Collection[int] | None = None) -> NDArray[np.float64]:
    """Return the frauds caught on each day, as the mean of some seeds."""
    source = [_days(found[way]) for seed, found in seeds.items() if chosen is None or seed in chosen]
    return np.asarray(np.mean(source, axis=0), np.float64)


def share_found(row: Mapping[str, Any]) -> float | None:
    """Return the share of the attack that is among the top."""
    counts = row["kinds"].get(str(ATTACK))
    return None if counts is None else sum(counts["found"]) / sum(counts["all"])


PART: Final = Part(tuple(_NAMES), units, tables)
