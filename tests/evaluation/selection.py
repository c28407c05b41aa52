"""Part ``features``: candidates added to the default set, on the families that choose and on folds of the file.

A feature enters if it helps in one family and does no harm elsewhere (`Admission`).
Families that judge are never read.
"""

import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import ttest_1samp

from pipeline.features.catalogue import DEFAULT_FEATURES, FEATURES
from pipeline.training.fit import TrainingConfig
from tests.evaluation import detection
from tests.evaluation.detection import FRAUDS, at, difference
from tests.evaluation.histories import History
from tests.evaluation.parts import Found, Part, Table, Unit, compared, markdown
from tests.evaluation.worlds.families import CHOOSING, FAMILIES
from tests.evaluation.worlds.part import history_of_world, measure, scored_days

SEEDS: Final = (11, 12, 13)
"""Others than those of the part ``worlds``, so that its table is not of what was chosen on."""
FOLDS: Final = "folds"
DEFAULT: Final = "default"
SMALLER: Final = TrainingConfig(legitimate_rows=30_000, trees=250, early_stopping_rounds=0)
"""Training of all sets: half of the time, and as many trees each.

Early stopping chooses between 12 and 300 trees for sets that hardly differ, which hides what the features do.
"""
LARGEST_LOSS: Final = 0.002
"""Average precision that no family may lose, by the lower end of the interval."""
LEVEL: Final = 0.05
BUILT_IN_CANDIDATES: Final = (
    "weekday", "card_count_1h", "card_min_1d", "card_max_1d", "card_sum_1d", "card_amount_deviation",
    "merchant_count_1h", "merchant_count_7d", "merchant_seconds_since_last", "merchant_amount_to_mean",
    "merchant_surge", "merchant_mean_30d", "merchant_known_fraud_14d", "merchant_known_fraud_30d",
    "merchant_seconds_since_fraud",
)  # fmt: skip
"""Candidates beside the windows that ``candidates.toml`` declares."""
_CANDIDATES: Final = Path(__file__).with_name("candidates.toml")
_MEASURE: Final = "average_precision"


class Admission(NamedTuple):
    """Whether a candidate enters.

    Attributes:
        enters: It helps in one family, and no other one nor the folds may lose more than `LARGEST_LOSS`.
        p: The least p-value over the families, corrected by Holm's method for all candidates and families.
    """

    enters: bool
    p: float


def candidates() -> tuple[str, ...]:
    """Return the names of all candidates that this process computes."""
    declared = tomllib.loads(_CANDIDATES.read_text(encoding="utf-8"))["features"]
    own = {f"{table['entity']}_{table.get('name') or table['aggregate']}" for table in declared}
    return tuple(
        name
        for name in FEATURES
        if name not in DEFAULT_FEATURES
        and (name in BUILT_IN_CANDIDATES or any(name == start or name.startswith(f"{start}_") for start in own))
    )


def sets() -> dict[str, tuple[str, ...]]:
    """Return the default, the default with each candidate, and without each of its features."""
    default = set(DEFAULT_FEATURES)
    found = {DEFAULT: DEFAULT_FEATURES}
    found |= {f"with {name}": _ordered(default | {name}) for name in candidates()}
    return found | {f"without {name}": _ordered(default - {name}) for name in DEFAULT_FEATURES if name != "amount"}


def _ordered(chosen: Collection[str]) -> tuple[str, ...]:
    return tuple(name for name in FEATURES if name in chosen)


def of_fold(file: Path, start: str, end: str) -> Found:
    """Return the figures of each set on a fold."""
    return _figures(History.from_file(file, FRAUDS), at(start), at(end))


def of_world(family: str, seed: int) -> Found:
    """Return the figures of each set in a seed's world."""
    history = history_of_world(FAMILIES[family].frame(seed))
    return _figures(history, *scored_days(history.data))


def _figures(history: History, start: datetime, end: datetime) -> Found:
    rows = history.rows(start, end)
    return {
        name: measure(history.data, rows, history.logit(history.version(start, chosen, SMALLER)[0], rows))
        for name, chosen in sets().items()
    }


def units(file: Path, final: bool, only: Collection[str]) -> list[Unit]:
    """Return a unit for each fold, and for each seed of a family that chooses; ``final`` changes nothing."""
    del final
    folds = detection.FOLDS if FOLDS in only else ()
    return [
        *(Unit(f"{FOLDS} {start} to {end}", of_fold, (file, start, end)) for start, end in folds),
        *(
            Unit(f"{family.name} {seed}", of_world, (family.name, seed))
            for family in CHOOSING
            if family.name in only
            for seed in SEEDS
        ),
    ]


def tables(found: Mapping[str, Found]) -> Iterator[Table]:
    """Yield for each set its differences from the default, a column for each family, and which candidates enter."""
    columns = {
        column: _pooled([unit for name, unit in found.items() if name.startswith(f"{column} ")])
        for column in (*(family.name for family in CHOOSING), FOLDS)
    }
    columns = {column: source for column, source in columns.items() if source}
    base = {column: source[DEFAULT] for column, source in columns.items()}
    results = admissions(columns)
    rows = [[DEFAULT, *(f"{np.nanmean(row):.4f}" for row in base.values()), "", ""]]
    for name in next(iter(columns.values())):
        if name == DEFAULT:
            continue
        cells = [compared(source[name], base[column]) for column, source in columns.items()]
        result = results.get(name)
        rows.append([name, *cells, *(("", "") if result is None else (f"{result.p:.4f}", "*" * result.enters))])
    yield markdown("Sets of features: average precision", ("features", *columns, "p", "enters"), rows)


def _pooled(units: Sequence[Found]) -> dict[str, NDArray[np.float64]]:
    """Return the average precision of all days of some units, by set."""
    if not units:
        return {}
    return {name: np.concatenate([unit[name][_MEASURE] for unit in units]) for name in units[0]}


def admissions(columns: Mapping[str, Mapping[str, ArrayLike]]) -> dict[str, Admission]:
    """Return for each set that adds a candidate whether it enters.

    Args:
        columns: Average precision of each day, by set, by family; `FOLDS` may be one of them.
    """
    names = [name for name in next(iter(columns.values())) if name.startswith("with ")]
    families = [column for column in columns if column != FOLDS]
    found: dict[str, dict[str, Any]] = {
        name: {column: np.subtract(columns[column][name], columns[column][DEFAULT]) for column in columns}
        for name in names
    }
    p = np.array([[_p_of(found[name][family]) for family in families] for name in names]).reshape(len(names), -1)
    corrected = holm(p.ravel()).reshape(p.shape)
    results = {}
    for number, name in enumerate(names):
        low = {column: difference(row, np.zeros(len(row)))["low"] for column, row in found[name].items()}
        helped = [family for family, value in zip(families, corrected[number], strict=True) if value < LEVEL]
        harmless = any(
            all((low[column] or 0.0) > -LARGEST_LOSS for column in columns if column != family) for family in helped
        )
        results[name] = Admission(harmless, float(corrected[number].min()))
    return results


def _p_of(more: NDArray[np.float64]) -> float:
    """Return the chance of such a mean or a larger one, if the days' differences had mean 0; 1 where all are alike."""
    value = float(ttest_1samp(more[~np.isnan(more)], 0.0, alternative="greater").pvalue) if np.nanstd(more) > 0 else 1.0
    return 1.0 if np.isnan(value) else value


def holm(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return p-values corrected for their number.

    >>> holm(np.array([0.01, 0.04, 0.03])).tolist()
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p)
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return corrected


PART: Final = Part((FOLDS, *(family.name for family in CHOOSING)), units, tables)
