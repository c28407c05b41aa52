"""Part ``river``: what the online model adds to daily renewal in the families that choose."""

from collections.abc import Collection, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Final

import numpy as np

from tests.evaluation.attacks import ALONE, DAILY, GATED, RIVER, ways_of
from tests.evaluation.histories import DEFAULTS
from tests.evaluation.parts import Found, Part, Table, Unit, markdown
from tests.evaluation.selection import SMALLER
from tests.evaluation.worlds.families import CHOOSING, FAMILIES
from tests.evaluation.worlds.part import (
    history_of_world,
    interval_of_seeds,
    items_of_worlds,
    measure,
    scored_days,
    units_of_worlds,
)

DAYS: Final = timedelta(days=14)
"""The last days of a world, each by a version of that day."""
_FAMILIES: Final = tuple(family.name for family in CHOOSING)


def measured(family: str, seed: int) -> Found:
    """Return the figures of daily renewal in a seed's world: alone, with the online model, and behind its gate."""
    history = history_of_world(FAMILIES[family].frame(seed))
    _, end = scored_days(history.data)
    start = end - DAYS
    ways = ways_of(history, DAILY, start, end, {RIVER: DEFAULTS}, SMALLER)
    return {name: measure(history.data, history.rows(start, end), score) for name, score in ways.items()}


def units(file: Path, final: bool, only: Collection[str]) -> list[Unit]:
    """Return a unit for each seed of a family that chooses; neither the file nor the final weeks are read."""
    del file, final
    return units_of_worlds(measured, CHOOSING, only)


def tables(found: Mapping[str, Found]) -> Iterator[Table]:
    """Yield a row for each family: what daily renewal finds, and how much more each way of the online model."""
    measures = {"average_precision": 4, "frauds": 2}
    head = [f"{way}: {name.replace('_', ' ')}" for way in (DAILY, RIVER, GATED) for name in measures]
    rows = []
    for family in _FAMILIES:
        seeds = [source for unit, source in found.items() if unit.startswith(f"{family} ")]
        if not seeds:
            continue
        cells = [family, str(len(seeds))]
        for way in (ALONE, RIVER, GATED):
            for name, digits in measures.items():
                alone, row = (np.array([seed[of][name] for seed in seeds]) for of in (ALONE, way))
                low, high = interval_of_seeds(row - alone)
                cells.append(
                    f"{np.nanmean(row):.{digits}f}"
                    if way == ALONE
                    else f"{np.nanmean(row - alone):+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
                )
        rows.append(cells)
    yield markdown("The online model on daily renewal", ("family", "seeds", *head), rows)


PART: Final = Part(items_of_worlds(_FAMILIES), units, tables)
