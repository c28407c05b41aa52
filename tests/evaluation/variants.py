"""Part ``variants``: features, label regimes and renewals beside each other, by month and by kind of fraud."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipeline.features.catalogue import FEATURES
from pipeline.features.declaration import BUILT_IN
from pipeline.training.fit import TrainingConfig
from tests.evaluation import detection
from tests.evaluation.detection import (
    ALL,
    FRAUDS,
    LATE,
    LATE_ALL,
    MEASURES,
    WITH_RIVER,
    Data,
    Scored,
    Variant,
    at,
    figures,
    joined,
    scored,
)
from tests.evaluation.gate import gated
from tests.evaluation.parts import Found, Part, Table, Unit, compared, markdown

BUILT_IN_FEATURES: Final = tuple(name for name in FEATURES if name in BUILT_IN)
BEFORE: Final = tuple(
    name
    for name in BUILT_IN_FEATURES
    if name
    not in (
        "card_regular_mean_30d", "card_amount_to_regular", "card_seconds_since_outlier",
        "merchant_unexplained_fraud_30d", "merchant_unreported_since_fraud", "merchant_fraud_run_seconds",
        "merchant_unreported_since_fraud_2d", "merchant_fraud_run_seconds_2d", "merchant_unreported_since_fraud_14d",
        "merchant_fraud_run_seconds_14d",
        "merchant_seconds_since_first",
    )
)  # fmt: skip
"""The features of before decision 0041."""
OLD_CONFIG: Final = TrainingConfig(
    trees=200, leaves=31, learning_rate=0.07, rows_per_leaf=100, feature_fraction=0.6, early_stopping_rounds=30,
    legitimate_rows=2**31 - 1,
)  # fmt: skip


VARIANTS: Final = (
    Variant("70 features of before", features=BEFORE, config=OLD_CONFIG),
    Variant("default", renewed_days=(7, 1), learns=True),
    Variant("all features", features=BUILT_IN_FEATURES),
    Variant("default, frauds-only", FRAUDS),
    Variant("70 features of before, frauds-only", FRAUDS, BEFORE, OLD_CONFIG),
    Variant("70 features of before, trained with all labels, frauds-only", FRAUDS, BEFORE, OLD_CONFIG, ALL),
    Variant("default, late, 10 % never", LATE_ALL),
    Variant("default, late, 10 % never, frauds-only", LATE, renewed_days=(7, 1), learns=True),
)
"""The first one is what the others are compared with."""


def measured(file: Path, variant: Variant, start: str, end: str) -> Found:
    """Return the figures of a fold by the names of what decided it: a variant, and those that are made of it."""
    data = Data.from_file(file)
    scores, found = scored(data, variant, at(start), at(end)), dict[str, Any]()
    for name, source in scores.items():
        found[name] = figures(data, source)
        if name.endswith(WITH_RIVER):
            rows, logit, threshold = source.columns
            _, alone, _ = scores[name.removesuffix(WITH_RIVER)].columns
            behind = Scored()
            behind.add(rows, gated(data, variant.regime, rows, alone, logit), threshold)
            found[f"{name} behind its gate"] = figures(data, behind)
    return found


def units(file: Path, final: bool, only: Collection[str]) -> list[Unit]:
    """Return a unit for each variant and fold."""
    folds = detection.FINAL if final else detection.FOLDS
    return [
        Unit(f"{variant.name}, {start} to {end}", measured, (file, variant, start, end))
        for variant in VARIANTS
        if variant.name in only
        for start, end in folds
    ]


def tables(found: Mapping[str, Found]) -> Iterator[Table]:
    """Yield the variants beside each other, the first one as the one to compare with, and their recall."""
    of_names: dict[str, list[dict[str, Any]]] = {}
    for of_fold in found.values():
        for name, source in of_fold.items():
            of_names.setdefault(name, []).append(source)
    rows = {name: joined(folds) for name, folds in of_names.items()}
    first = next(iter(rows.values()))
    head = (
        "variant", "card precision@100", "transaction precision@100", "average precision", "of the period",
        "cases a day",
    )  # fmt: skip
    yield markdown("Variants", head, [_cells(name, row, None if row is first else first) for name, row in rows.items()])
    if any(row["kinds"] for row in rows.values()):
        yield recalls("Recall among the 100 highest scores of a day", "variant", rows)


def _cells(name: str, row: dict[str, Any], base: dict[str, Any] | None) -> list[str]:
    cells = [name]
    for measure in MEASURES:
        against = "" if base is None else f" {compared(row[measure], base[measure]).split(' ', 1)[1]}"
        cells.append(f"{np.nanmean(row[measure]):.4f}{against}")
    return [*cells, f"{row['average_precision_of_period']:.4f}", f"{row['cases'] / len(row['days']):.1f}"]


def recalls(title: str, what: str, rows: Mapping[str, dict[str, Any]]) -> Table:
    """Return the share of each kind of fraud that is among the top, for figures by name."""
    kinds = sorted({kind for row in rows.values() for kind in row["kinds"]})
    cells = []
    for name, row in rows.items():
        counts = [(sum(row["kinds"][kind]["found"]), sum(row["kinds"][kind]["all"])) for kind in kinds]
        cells.append([name, *(f"{found / of_all:.3f} of {of_all}" if of_all else "" for found, of_all in counts)])
    return markdown(title, (what, *kinds), cells)


PART: Final = Part(tuple(variant.name for variant in VARIANTS), units, tables)
