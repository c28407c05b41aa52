"""``python -m tests.evaluation.compared FILE``: the pipeline's models beside the Handbook's published table.

The protocol is that of `tests.evaluation.published`: what was known on 8 August, seven days after the last transaction
that may teach, and figures of 8 to 14 August without the cards that were known by then. The pipeline's models decide
that week in a backtest of the file, as `fraud-pipeline backtest` does it.

`PART` is the part ``published`` of `tests.evaluation.quality`: the default alone, on that week and on four folds.
"""

import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import astuple
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import click
import numpy as np
import pandas as pd

from pipeline import Backtest, LabelPolicy, OnlineModel, TimeRange
from pipeline.backtest.runner.result import BacktestResult
from pipeline.engine.scores.active_models import ActiveModels
from pipeline.history.files import ColumnMapping, resolve_mapping
from pipeline.learning.regimes import LabelRegime
from pipeline.scoring.river_factory import first_river
from pipeline.settings import Settings
from pipeline.training.cohorts import TrainingSet, split_cohorts
from pipeline.training.fit import train
from schemas.times import EPOCH, US_PER_DAY
from tests.evaluation.detection import ALL, Data
from tests.evaluation.histories import RIVER_WARM_UP, History
from tests.evaluation.parts import Found, Part, Table, Unit, markdown
from tests.evaluation.published import (
    DELAY_DAYS,
    FOLDS,
    FOLDS_PUBLISHED,
    PUBLISHED,
    TEST_DAYS,
    TEST_FROM,
    TEST_TO,
    TRAIN_DAYS,
    TRAIN_FROM,
    Figures,
    Weeks,
    baselines,
)
from tests.helpers.features import history_of
from tests.helpers.files import load_transactions

SAME_WEEK = "LightGBM, the same week"
HISTORY = "LightGBM, all that was known"
ON_TOP = ", River on top"
VALIDATION_DAYS = {SAME_WEEK: 2, HISTORY: 7}
"""The last days of what may teach: they choose the number of trees and calibrate them."""


def own_models(file: Path) -> dict[str, Figures]:
    """Figures of the pipeline's features and models: LightGBM trained twice, each with and without a model that learns.

    Trained on what the Handbook trains on (``SAME_WEEK``), or on everything that was known (``HISTORY``).
    """
    mapping = resolve_mapping(file)
    known = load_transactions(file, mapping, end=TEST_FROM)
    data = history_of(known, LabelRegime(delay_days=DELAY_DAYS)).training_set()
    models = {SAME_WEEK: _trained(data, SAME_WEEK, TRAIN_FROM), HISTORY: _trained(data, HISTORY, None)}
    weeks = Weeks(frame := pd.read_parquet(file))
    wanted = frame.loc[weeks.test, "TRANSACTION_ID"].astype(str)
    found = {}
    for suffix, learn in (("", False), (ON_TOP, True)):
        for variant in _decided(file, mapping, models, learn=learn).variants:
            score = variant.decisions.set_index("transaction_id")["score"]
            found[variant.name + suffix] = weeks.measure(score.loc[wanted].to_numpy(np.float64))
    return found


def _trained(data: TrainingSet, name: str, first: datetime | None) -> ActiveModels:
    unit = timedelta(microseconds=1)
    split = split_cohorts(
        data.event_time_us,
        label_delay_us=DELAY_DAYS * US_PER_DAY,
        validation_us=VALIDATION_DAYS[name] * US_PER_DAY,
        train_from_us=None if first is None else (first - EPOCH) // unit,
        known_before_us=(TEST_FROM - EPOCH) // unit,
    )
    trained = train(data, split)
    return ActiveModels(trained.model, first_river(), trained.policy)


def _decided(file: Path, mapping: ColumnMapping, models: dict[str, ActiveModels], *, learn: bool) -> BacktestResult:
    with tempfile.TemporaryDirectory(prefix="fraud-pipeline-compared-") as directory:
        return Backtest(
            file,
            range=TimeRange(TEST_FROM, TEST_TO),
            models=models,
            online=OnlineModel(learn=learn, blend=1.0 if learn else None),
            labels=LabelPolicy(regime=LabelRegime(delay_days=DELAY_DAYS)),
            mapping=mapping,
            settings=Settings(data_dir=Path(directory), kafka_bootstrap_servers=None),
        ).run()


def rows(file: Path) -> Iterator[tuple[str, str, Figures]]:
    """What is compared: the features that a model saw, the model and whose figures they are, and the figures."""
    here = baselines(pd.read_parquet(file))
    for name, published in PUBLISHED.items():
        yield "the Handbook's 15", f"{name}, published", published
        if name in here:
            yield "the Handbook's 15", f"{name}, here", here[name]
    for name, own in own_models(file).items():
        yield "the pipeline's", name, own


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def command(file: Path) -> None:
    """Print the table of ``docs/evaluation.md`` from FILE, the Handbook's transactions (Parquet)."""
    click.echo("| features | model | AUC ROC | average precision | card precision at 100 |")
    click.echo("| --- | --- | --- | --- | --- |")
    for features, name, row in rows(file):
        click.echo(
            f"| {features} | {name} | {row.auc_roc:.3f} | {row.average_precision:.3f} | {row.card_precision:.3f} |"
        )


SINGLE: Final = "single split"
FOUR: Final = "four folds"
EARLIER: Final = "four folds before 8 July"
_SPLITS: Final = {
    SINGLE: (TEST_FROM, 1),
    FOUR: (datetime(2018, 7, 4, tzinfo=UTC), FOLDS),
    EARLIER: (datetime(2018, 6, 10, tzinfo=UTC), FOLDS),
}
"""Begin of the first week of test, and number of weeks."""
_PUBLISHED_OF: Final = {SINGLE: PUBLISHED, FOUR: FOLDS_PUBLISHED, EARLIER: {}}
_DEFAULT: Final = "LightGBM, the default"


def measured(file: Path, first: datetime, weeks: int) -> Found:
    """Return the mean figures of the default over some weeks of test, trained before each on all that was known."""
    history = History(Data(file), ALL)
    frame = pd.read_parquet(file)
    begins = [first + timedelta(days=TEST_DAYS * week) for week in range(weeks)]
    rows, logit = [history.rows(first - RIVER_WARM_UP, first)], []
    for begin in begins:
        model, _ = history.version(begin)
        if not logit:
            logit.append(history.logit(model, rows[0]))
        rows.append(history.rows(begin, begin + timedelta(days=TEST_DAYS)))
        logit.append(history.logit(model, rows[-1]))
    alone, river = np.full((2, len(frame)), np.nan)
    of_test = np.concatenate(rows[1:])
    alone[of_test] = np.concatenate(logit[1:])
    river[of_test] = history.corrected(np.concatenate(rows), np.concatenate(logit), first)
    row: dict[str, list[Figures]] = {}
    for begin in begins:
        train_from = begin - timedelta(days=TRAIN_DAYS + DELAY_DAYS)
        weeks_of = Weeks(frame, train_from)
        here = {
            _DEFAULT: weeks_of.measure(alone[weeks_of.test]),
            _DEFAULT + ON_TOP: weeks_of.measure(river[weeks_of.test]),
        }
        here |= {f"{name}, here": figures for name, figures in baselines(frame, train_from).items()}
        for name, figures in here.items():
            row.setdefault(name, []).append(figures)
    return {name: np.mean([astuple(item) for item in ones], axis=0).tolist() for name, ones in row.items()}


def units(file: Path, final: bool, only: Collection[str]) -> list[Unit]:
    """Return a unit for each protocol; those that were published lie in the final weeks."""
    names = (SINGLE, FOUR) if final else (EARLIER,)
    return [Unit(name, measured, (file, *_SPLITS[name])) for name in names if name in only]


def tables(found: Mapping[str, Found]) -> Iterator[Table]:
    """Yield the figures of each protocol beside those that were published."""
    for name, source in found.items():
        rows = [[f"{model}, published", *map(_cell, astuple(item))] for model, item in _PUBLISHED_OF[name].items()]
        rows += [[model, *map(_cell, item)] for model, item in source.items()]
        yield markdown(f"Handbook's protocol, {name}", ("model", "AUC ROC", "average precision", "CP@100"), rows)


def _cell(value: float) -> str:
    return f"{value:.3f}"


PART: Final = Part((SINGLE, FOUR, EARLIER), units, tables)


if __name__ == "__main__":
    command()
