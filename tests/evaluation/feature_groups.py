"""Part ``features``: groups of features taken from the default and added to it, on folds and in simulated worlds."""

import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from pipeline.features.catalogue import DEFAULT_FEATURES, FEATURES
from pipeline.learning.regimes import LabelRegime
from pipeline.simulation.simulator import DEFAULT_START, Scenario, make_profiles, simulate_days
from pipeline.training.fit import TrainingConfig
from tests.evaluation import detection
from tests.evaluation.detection import FRAUDS, LATE, MEASURES, Data, at, difference, figures, joined
from tests.evaluation.histories import History
from tests.evaluation.parts import Found, Part, Table, Unit, markdown

_STATISTICS: Final = ("sum", "mean", "std", "max", "min")


def _group(entity: str, *others: str, statistics: tuple[str, ...] = ()) -> tuple[str, ...]:
    windows = {f"{entity}_{statistic}_{window}" for statistic in statistics for window in ("1h", "1d", "7d", "30d")}
    return tuple(name for name in FEATURES if name in windows or name in others)


GROUPS: Final = {
    "time": ("hour", "weekday"),
    "card's rhythm": _group("card", "card_seconds_since_last", "card_merchant_count", statistics=("count",)),
    "card's amounts": _group("card", statistics=_STATISTICS),
    "card's usual": _group(
        "card", "card_usual_amount", "card_amount_to_usual", "card_amount_deviation", "card_outlier_count_1d",
        "card_outlier_count_7d", "card_outlier_count_30d", "card_regular_mean_30d", "card_amount_to_regular",
        "card_seconds_since_outlier",
    ),
    "merchant's rhythm": _group(
        "merchant", "merchant_seconds_since_last", "merchant_surge", "merchant_seconds_since_first",
        statistics=("count",),
    ),
    "merchant's amounts": _group("merchant", "merchant_amount_to_mean", statistics=_STATISTICS),
    "merchant's labels": tuple(
        name for name in FEATURES if "_known_" in name or "_risk_" in name or name in (
            "merchant_newest_label", "merchant_seconds_since_fraud", "merchant_seconds_since_legitimate",
        )
    ),
    "merchant's silence": (
        "merchant_unexplained_fraud_30d", "merchant_unreported_since_fraud", "merchant_fraud_run_seconds",
        "merchant_unreported_since_fraud_2d", "merchant_fraud_run_seconds_2d", "merchant_unreported_since_fraud_14d",
        "merchant_fraud_run_seconds_14d",
    ),
}  # fmt: skip
"""All features but ``amount``, by what they describe."""


def _ordered(chosen: Collection[str]) -> tuple[str, ...]:
    return tuple(name for name in FEATURES if name in chosen)


def sets() -> dict[str, tuple[str, ...]]:
    """Return what is compared with the default: all features, and the default without each group and with all of it."""
    default, found = set(DEFAULT_FEATURES), {"all": FEATURES}
    for name, group in GROUPS.items():
        if default & set(group):
            found[f"without {name}"] = _ordered(default - set(group))
        if set(group) - default:
            found[f"with all of {name}"] = _ordered(default | set(group))
    return found


SMALLER: Final = TrainingConfig(legitimate_rows=30_000)
"""What all sets are trained by: half of the time, and what is compared are features."""


@dataclass(frozen=True, slots=True)
class World:
    """A simulated history, of which the last days are measured."""

    seed: int
    scenario: Scenario = field(default_factory=Scenario)
    regime: LabelRegime = FRAUDS
    cards: int = 2_000
    merchants: int = 4_000
    days: int = 77
    measured_days: int = 28

    def frame(self) -> pd.DataFrame:
        """Return its transactions, in the canonical columns."""
        profiles = make_profiles(np.random.default_rng(self.seed), self.cards, self.merchants, self.scenario)
        made = simulate_days(profiles, self.seed, 0, self.days)
        return made[made["amount_minor"] > 0].reset_index(drop=True)


WORLDS: Final = {
    "as published": World(11),
    "10 % of a merchant's": World(13, Scenario(merchant_share=0.1)),
    "card's amounts doubled": World(14, Scenario(card_factor=2)),
    "a third of the frauds": World(15, Scenario(merchants_per_day=1, cards_per_day=1)),
    "30 % of a merchant's, late reports": World(16, Scenario(merchant_share=0.3), LATE),
}


def _measured(history: History, start: datetime, end: datetime) -> Found:
    source = {"default": DEFAULT_FEATURES, **sets()}
    return {name: figures(history.data, history.scored(start, end, chosen, SMALLER)) for name, chosen in source.items()}


def of_fold(file: Path, start: str, end: str) -> Found:
    """Return the figures of each set on a fold."""
    return _measured(_history(file), at(start), at(end))


@lru_cache(maxsize=1)
def _history(file: Path) -> History:
    return History(Data.from_file(file), FRAUDS)


def of_world(world: World) -> Found:
    """Return the figures of each set in a world."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "transactions.parquet")
        world.frame().to_parquet(path)
        history = History(Data(path), world.regime)
    end = at(f"{DEFAULT_START:%Y-%m-%d}") + timedelta(days=world.days)
    return _measured(history, end - timedelta(days=world.measured_days), end)


_FOLDS: Final = "folds"


def units(file: Path, final: bool, only: Collection[str]) -> list[Unit]:
    """Return a unit for each fold and world; nothing may be chosen on the final weeks, so that they are not read."""
    del final
    folds = detection.FOLDS if _FOLDS in only else ()
    return [
        *(Unit(f"{start} to {end}", of_fold, (file, start, end)) for start, end in folds),
        *(Unit(name, of_world, (world,)) for name, world in WORLDS.items() if name in only),
    ]


def tables(found: Mapping[str, Found]) -> Iterator[Table]:
    """Yield differences from the default: a table for each measure, with a column for each world."""
    folds = [source for name, source in found.items() if name not in WORLDS]
    columns: dict[str, Mapping[str, Any]] = {}
    if folds:
        columns[_FOLDS] = {name: joined([fold[name] for fold in folds]) for name in folds[0]}
    columns |= {name: source for name, source in found.items() if name in WORLDS}
    for measure in (MEASURES[0], MEASURES[2]):
        rows = [["default", *(f"{np.nanmean(column['default'][measure]):.4f}" for column in columns.values())]]
        rows += [
            [name, *(_interval(column[name][measure], column["default"][measure]) for column in columns.values())]
            for name in next(iter(columns.values()))
            if name != "default"
        ]
        yield markdown(f"Sets of features: {measure.replace('_', ' ')}", ("features", *columns), rows)


def _interval(row: Sequence[float], base: Sequence[float]) -> str:
    """Return an interval in thousandths; in bold where it leaves out 0."""
    source = difference(row, base)
    reported = f"{1_000 * source['low']:+.0f} to {1_000 * source['high']:+.0f}"
    return f"**{reported}**" if source["low"] > 0 or source["high"] < 0 else reported


PART: Final = Part((_FOLDS, *WORLDS), units, tables)
