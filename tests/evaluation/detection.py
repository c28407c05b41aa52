"""Detection of the pipeline's models on a file: variants, scores of a fold, daily measures and paired differences.

Trains by the project's own code on what was known before a fold, and scores the fold's days. `tests.evaluation.quality`
is the program; ``docs/quality.md`` says what the figures mean.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import average_precision_score

from pipeline import Backtest, LabelPolicy, OnlineModel, TimeRange, Training
from pipeline.backtest.metrics.bootstrap import interval, resampled
from pipeline.backtest.metrics.ranking import daily_precision, top_of_days
from pipeline.decision.budget import case_numbers, first_alerts
from pipeline.engine.scores.active_models import ActiveModels
from pipeline.engine.scores.decisions import Decisions
from pipeline.features.catalogue import DEFAULT_FEATURES
from pipeline.history.files import resolve_mapping
from pipeline.learning.regimes import LabelRegime
from pipeline.replay.messages import event_times_us, identities_of
from pipeline.scoring.blend import sigmoid
from pipeline.scoring.river_factory import first_river
from pipeline.settings import Settings
from pipeline.training.fit import TrainingConfig
from pipeline.training.score_metrics import daily_card_precision, days_of
from schemas.times import EPOCH
from tests.helpers.files import load_transactions

TOP: Final = 100
"""Cases a day."""
FOLDS: Final = (("2018-05-27", "2018-06-17"), ("2018-06-17", "2018-07-08"))
FINAL: Final = (("2018-07-08", "2018-08-15"),)
TRAIN_FROM: Final = "2018-04-01"
VALIDATION_DAYS: Final = 7.0
REPLICATES: Final = 4_000
WITH_RIVER: Final = ", with River"
"""Behind the name of a variant with the online model."""
MEASURES: Final = ("card_precision", "transaction_precision", "average_precision")

ALL: Final = LabelRegime(delay_days=7.0)
FRAUDS: Final = LabelRegime(reported="frauds-only", delay_days=7.0)
LATE: Final = LabelRegime(reported="frauds-only", delay_days=3.0, delay_spread=0.66, never_reported=0.1)
LATE_ALL: Final = LabelRegime(delay_days=3.0, delay_spread=0.66, never_reported=0.1)


@dataclass(frozen=True, slots=True)
class Variant:
    """A way to train, and the labels that it lives with."""

    name: str
    regime: LabelRegime = ALL
    features: tuple[str, ...] = DEFAULT_FEATURES
    config: TrainingConfig | None = None
    trained_under: LabelRegime | None = None
    """The regime of the training, if it is another one."""
    renewed_days: tuple[float, ...] = ()
    """For each, another variant that is trained again after so many days; this one is trained once before a fold."""
    learns: bool = False
    """Measure each with an online model too, which learns from the warm-up on."""
    early_reports: bool = False
    """Take reports of young transactions at once; `tests.evaluation.attacks` measures what that brings."""


class Data:
    """Truth and columns of the file."""

    def __init__(self, file: Path) -> None:
        self.file, self.mapping = file, resolve_mapping(file)
        frame = load_transactions(file, self.mapping)
        self.frame = frame
        self.fraud = frame["fraud"].to_numpy(bool)
        self.kind = frame["fraud_type"].to_numpy(str) if "fraud_type" in frame else None
        self.times = event_times_us(frame)
        self.card = np.asarray(pd.factorize(frame["card_id"])[0], np.int64)

    @staticmethod
    @lru_cache(maxsize=1)
    def from_file(file: Path) -> "Data":
        """Return the data of a file; what was read last is kept, since many units measure the same file."""
        return Data(file)

    def reported_us(self, regime: LabelRegime, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return when each of some rows, which are frauds, is reported; shape (len(rows),)."""
        return regime.known_at_us(self.times[rows], self.fraud[rows], identities_of(self.frame.iloc[rows]))

    def backtest(self, regime: LabelRegime, start: datetime, end: datetime, **more: Any) -> Backtest:
        """Return a backtest of some days under a label regime, with no active version."""
        return Backtest(
            self.file,
            range=TimeRange(start, end, validation_days=VALIDATION_DAYS),
            mapping=self.mapping,
            labels=LabelPolicy(regime=regime),
            settings=Settings(data_dir=Path("build/quality"), registry_dir=None, kafka_bootstrap_servers=None),
            **more,
        )


def before(file: Path, day: str) -> pd.DataFrame:
    """Return a file of the Handbook's columns without what comes from a day on."""
    frame = pd.read_parquet(file)
    return frame[frame["TX_DATETIME"] < pd.Timestamp(day)]


class Scored:
    """Scores of a fold as log-odds, and how many cases they raise."""

    def __init__(self) -> None:
        self.rows: list[NDArray[np.int64]] = []
        self.scores: list[NDArray[np.float64]] = []
        self.thresholds: list[NDArray[np.float64]] = []

    def add(self, rows: NDArray[np.int64], score: NDArray[np.float64], threshold: ArrayLike) -> None:
        """Add rows of the file with their scores, and one threshold or that of each row."""
        self.rows.append(rows)
        self.scores.append(score)
        self.thresholds.append(np.broadcast_to(np.asarray(threshold, np.float64), score.shape))

    @property
    def columns(self) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        """Rows, scores and thresholds, each of shape (n,)."""
        return np.concatenate(self.rows), np.concatenate(self.scores), np.concatenate(self.thresholds)


def scored(data: Data, variant: Variant, start: datetime, end: datetime) -> dict[str, Scored]:
    """Score a fold by a variant, and by those beside it that are renewed or corrected by the online model."""
    found: defaultdict[str, Scored] = defaultdict(Scored)

    def take(name: str, decisions: Decisions) -> None:
        rows, threshold = decisions.transactions.row, decisions.models.policy.threshold
        found[name].add(rows, decisions.logit, threshold)
        if variant.learns:
            found[f"{name}{WITH_RIVER}"].add(rows, decisions.river_logit, threshold)

    training = Training(
        variants={variant.name: variant.features},
        start=at(TRAIN_FROM),
        alerts_per_day=TOP,
        config=variant.config or TrainingConfig(),
        renew_days=variant.renewed_days,
        early_reports=variant.early_reports,
    )
    if variant.trained_under is None:
        backtest = data.backtest(
            variant.regime, start, end, training=training, online=OnlineModel(learn=variant.learns)
        )
    else:
        before = data.backtest(variant.trained_under, start, start + timedelta(days=1), training=training)
        before.each(lambda name, decisions: None)
        trained = before.trained[variant.name]
        models = {variant.name: ActiveModels(trained.model, first_river(), trained.policy)}
        backtest = data.backtest(variant.regime, start, end, models=models)
    backtest.each(take)
    return found


def daily(data: Data, rows: NDArray[np.int64], score: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the `MEASURES` of each day, shape (len(MEASURES), days)."""
    fraud, times, card = data.fraud[rows], data.times[rows], data.card[rows]
    chosen = top_of_days(score, times, TOP)
    of_days = [
        average_precision_score(fraud[day], score[day]) if fraud[day].any() else np.nan for _, day in days_of(times)
    ]
    return np.array(
        [
            daily_card_precision(fraud, score, times, card, TOP)[1],
            daily_precision(fraud, chosen, times, TOP)[1],
            of_days,
        ]
    )


def figures(data: Data, found: Scored) -> dict[str, Any]:
    """Return the figures of a fold, as JSON has them: lists by day, and of all days."""
    rows, score, threshold = found.columns
    times = data.times[rows]
    days = list(days_of(times))
    return {
        "days": [f"{EPOCH + timedelta(days=day):%Y-%m-%d}" for day, _ in days],
        **{name: row.tolist() for name, row in zip(MEASURES, daily(data, rows, score), strict=True)},
        "average_precision_of_period": float(average_precision_score(data.fraud[rows], score)),
        "cases": len(first_alerts(case_numbers(data.card[rows], times), sigmoid(score) >= threshold)),
        "kinds": _kinds(data, rows, top_of_days(score, times, TOP), [day for _, day in days]),
    }


def _kinds(
    data: Data, rows: NDArray[np.int64], chosen: NDArray[np.bool_], days: list[slice | NDArray[np.intp]]
) -> dict[str, dict[str, list[int]]]:
    """Return for each kind of fraud how many there are of it on each day, and how many are among the day's top."""
    if data.kind is None:
        return {}
    kinds = data.kind[rows]
    return {
        str(kind): {
            "found": [int(np.count_nonzero(chosen[day] & (kinds[day] == kind))) for day in days],
            "all": [int(np.count_nonzero(kinds[day] == kind)) for day in days],
        }
        for kind in np.unique(kinds[data.fraud[rows]])
    }


def joined(folds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of several folds as those of one; periods and cases are a day's or a fold's mean."""
    kinds = {kind for fold in folds for kind in fold["kinds"]}
    none = {"found": [], "all": []}
    return {
        **{name: [item for fold in folds for item in fold[name]] for name in ("days", *MEASURES)},
        "average_precision_of_period": float(np.mean([fold["average_precision_of_period"] for fold in folds])),
        "cases": sum(fold["cases"] for fold in folds),
        "kinds": {
            kind: {name: [n for fold in folds for n in fold["kinds"].get(kind, none)[name]] for name in none}
            for kind in sorted(kinds)
        },
    }


def difference(row: ArrayLike, base: ArrayLike) -> dict[str, float | None]:
    """Return the mean difference of paired days, and the ends of its 95 % interval; both of shape (days,)."""
    found = np.asarray(row, np.float64) - np.asarray(base, np.float64)
    found = found[~np.isnan(found)]
    means = resampled(lambda drawn: np.array([drawn @ found / drawn.sum()]), len(found), REPLICATES, seed=0)
    low, high = interval(means[:, 0]) or (np.nan, np.nan)
    return {"mean": float(found.mean()), "low": low, "high": high}


def at(day: str) -> datetime:
    """Return when a day begins (UTC)."""
    return datetime.fromisoformat(day).replace(tzinfo=UTC)
