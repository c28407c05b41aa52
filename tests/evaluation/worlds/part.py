"""Part ``worlds``: the default beside what a user would take instead, in each family of worlds and on the file.

A case is a card's day. Half as many cases a day are opened as cards have fraud on it: with more, models find all that
there is and cannot be told apart.
"""

import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from pipeline.backtest.metrics.bootstrap import interval
from pipeline.history.files import resolve_mapping
from pipeline.scoring.blend import sigmoid
from pipeline.training.score_metrics import calibration_error, days_of
from schemas.times import EPOCH, US_PER_DAY
from tests.evaluation.detection import FOLDS, FRAUDS, REPLICATES, Data
from tests.evaluation.histories import History
from tests.evaluation.parts import Found, Part, Table, Unit, markdown
from tests.evaluation.worlds.families import CHOOSING, FAMILIES, SCORED_DAYS, Family
from tests.evaluation.worlds.rivals import RIVALS, Task
from tests.helpers.files import load_transactions

SEEDS: Final = (1, 2, 3, 4, 5)
FILE: Final = "file"
DEFAULT: Final = "default"
MEASURES: Final = ("average_precision", "frauds", "money")
_GROUPS: Final = 10
"""Groups of alerts by score, of equal size."""
_DRAWS: Final = 1_000
_HANDBOOK_TIME: Final = "TX_DATETIME"


def measure(data: Data, rows: NDArray[np.int64], score: NDArray[np.float64]) -> dict[str, list[float]]:
    """Return for each day its average precision, and the frauds and the money in half as many cases as have fraud.

    Args:
        data: Truth.
        rows: Rows in order of time, shape (n,).
        score: Their scores, shape (n,). A day without scores is NaN, and so are its figures.
    """
    found: dict[str, list[float]] = {name: [] for name in (*MEASURES, "frauds_of_day", "money_of_day")}
    fraud, card = data.fraud[rows], data.card[rows]
    money = np.where(fraud, data.frame["amount_minor"].to_numpy()[rows] / 100, 0.0)
    for _, day in days_of(data.times[rows]):
        cards, case = np.unique(card[day], return_inverse=True)
        frauds, of_money = (np.bincount(case, values[day], len(cards)) for values in (fraud.astype(float), money))
        figures = (np.nan, np.nan, np.nan)
        if not np.isnan(score[day]).any():
            highest = np.full(len(cards), -np.inf)
            np.maximum.at(highest, case, score[day])
            opened = np.argsort(-highest, kind="stable")[: max(1, round(np.count_nonzero(frauds) / 2))]
            precision = average_precision_score(fraud[day], score[day]) if fraud[day].any() else np.nan
            figures = (precision, frauds[opened].sum(), of_money[opened].sum())
        for name, value in zip(found, (*figures, frauds.sum(), of_money.sum()), strict=True):
            found[name].append(float(value))
    return found


def calibration(score: NDArray[np.float64], fraud: NDArray[np.bool_]) -> dict[str, float]:
    """Return the expected calibration error of alerts, and below what it is for outcomes drawn from their scores.

    Args:
        score: Probabilities of fraud of all alerts, shape (n,).
        fraud: Shape (n,).
    """
    if len(score) < _GROUPS:
        return {}
    drawn = np.random.default_rng(0).random((_DRAWS, len(score))) < score
    return {
        "alerts": len(score),
        "mean_score": float(score.mean()),
        "share_of_frauds": float(fraud.mean()),
        "error": calibration_error(score, fraud, _GROUPS),
        "limit": float(np.percentile([calibration_error(score, outcome, _GROUPS) for outcome in drawn], 95)),
    }


def history_of_world(frame: pd.DataFrame) -> History:
    """Return the features of a world, in the canonical columns, of which frauds alone are reported after seven days."""
    with tempfile.TemporaryDirectory() as directory:
        frame.to_parquet(path := Path(directory, "transactions.parquet"))
        data = Data(path)
    return History(data, FRAUDS, begin_of(data))


def begin_of(data: Data) -> datetime:
    """Return midnight of the first day."""
    return EPOCH + timedelta(days=int(data.times[0] // US_PER_DAY))


def scored_days(data: Data) -> tuple[datetime, datetime]:
    """Return the first of the days that are scored, and the end of the last one."""
    end = EPOCH + timedelta(days=int(data.times[-1] // US_PER_DAY) + 1)
    return end - timedelta(days=SCORED_DAYS), end


def of_frame(frame: pd.DataFrame) -> Found:
    """Return the figures of each model on the last days of a frame, trained on what was known before them."""
    history = history_of_world(frame)
    data, (start, end) = history.data, scored_days(history.data)
    model, threshold = history.version(start)
    task = Task.of(history, begin_of(data), start, end)
    scores = {DEFAULT: history.logit(model, task.scored), **{name: rival(task) for name, rival in RIVALS.items()}}
    score = sigmoid(scores[DEFAULT])
    alert = score >= threshold
    return {
        "models": {name: measure(data, task.scored, found) for name, found in scores.items()},
        "calibration": calibration(score[alert], data.fraud[task.scored][alert]),
    }


def of_world(family: str, seed: int) -> Found:
    """Return the figures of each model in a seed's world."""
    return of_frame(FAMILIES[family].frame(seed))


def of_file(file: Path, final: bool) -> Found:
    """Return the figures of each model on a file; of the Handbook's, ``final`` alone reads the last weeks."""
    frame = load_transactions(file)
    if not final and _HANDBOOK_TIME in resolve_mapping(file).columns.values():
        frame = frame[frame["event_time"] < pd.Timestamp(FOLDS[-1][1], tz="UTC")]
    return of_frame(frame)


def units(file: Path, final: bool, only: Collection[str]) -> list[Unit]:
    """Return a unit for the file and for each family and seed; ``final`` alone measures families that judge."""
    of_file_alone = [Unit(FILE, of_file, (file, final))] if FILE in only else []
    return of_file_alone + units_of_worlds(of_world, FAMILIES.values() if final else CHOOSING, only)


def items_of_worlds(families: Collection[str]) -> tuple[str, ...]:
    """Return what ``--only`` knows of some families: their names, and each of their seeds."""
    return (*families, *(f"{family} {seed}" for family in families for seed in SEEDS))


def units_of_worlds(measure: Callable[..., Found], families: Iterable[Family], only: Collection[str]) -> list[Unit]:
    """Return a unit for each seed of some families; ``only`` names a family, or one of its seeds."""
    return [
        Unit(f"{family.name} {seed}", measure, (family.name, seed))
        for family in families
        for seed in SEEDS
        if not {family.name, f"{family.name} {seed}"}.isdisjoint(only)
    ]


def tables(found: Mapping[str, Found]) -> Iterator[Table]:
    """Yield a table for the file and for each family, with what the default has more, and one of its calibration."""
    head = ("model", "average precision", "frauds in half the cases", "money in half the cases")
    for name in (FILE, *FAMILIES):
        of_seeds = [source["models"] for unit, source in found.items() if unit == name or unit.startswith(f"{name} ")]
        if not of_seeds:
            continue
        days = {
            model: {key: np.array([seed[model][key] for seed in of_seeds]) for key in row}
            for model, row in of_seeds[0].items()
        }
        base = days[DEFAULT]
        title = (
            f"{name}: {np.mean(base['frauds_of_day']):.1f} frauds a day of {np.mean(base['money_of_day']):,.0f}, "
            f"{len(of_seeds)} seeds"
        )
        yield markdown(title, head, [[model, *_cells(row, base, model)] for model, row in days.items()])
    columns = ("alerts", "mean score", "share of frauds", "calibration error", "of drawn outcomes, below")
    rows = []
    for name, source in found.items():
        if source["calibration"]:
            alerts, *figures = source["calibration"].values()
            rows.append([name, str(alerts), *(f"{value:.4f}" for value in figures)])
    yield markdown("Calibration of alerts", ("world", *columns), rows)


def _cells(row: Mapping[str, Any], base: Mapping[str, Any], model: str) -> Iterator[str]:
    """Yield each measure, and how much more the default has."""
    for measure_name, digits in zip(MEASURES, (4, 1, 0), strict=True):
        cell = f"{np.nanmean(row[measure_name]):,.{digits}f}"
        if model != DEFAULT:
            ends = interval_of_seeds(base[measure_name] - row[measure_name])
            cell += f" [{', '.join(f'{end:+,.{digits}f}' for end in ends)}]"
        yield cell


def interval_of_seeds(more: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % interval of a mean: seeds are drawn with replacement, and days of each.

    Args:
        more: Differences, shape (seeds, days); NaN for days that were not measured.
    """
    seeds, days = more.shape
    generator, means = np.random.default_rng(0), np.empty(REPLICATES)
    for number in range(REPLICATES):
        drawn = more[generator.integers(seeds, size=(seeds, 1)), generator.integers(days, size=(seeds, days))]
        means[number] = np.nanmean(drawn) if np.isfinite(drawn).any() else np.nan
    return interval(means) or (np.nan, np.nan)


PART: Final = Part((FILE, *items_of_worlds(FAMILIES)), units, tables)
