"""``python -m tests.evaluation.quality FILE``: detection of the pipeline's models, with intervals.

Trains by the project's own code on what was known before a fold, and scores the fold's days. ``docs/quality.md`` says
what the figures mean. Choose on the folds; only ``--final`` reads the weeks that nothing was chosen on.
"""

import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from pipeline.backtest.bootstrap import interval, resampled
from pipeline.backtest.metrics import daily_precision, top_of_days
from pipeline.engine.history import event_times_us, identities_of
from pipeline.features.catalogue import DEFAULT_FEATURES, FEATURES, US_PER_DAY
from pipeline.learning.regimes import NEVER_US, LabelRegime
from pipeline.learning.report_delays import ReportDelays
from pipeline.replay import EPOCH
from pipeline.scoring.blend import sigmoid
from pipeline.sources import load_transactions, resolve_mapping
from pipeline.training.cohorts import split_cohorts
from pipeline.training.datasets import from_history
from pipeline.training.early_reports import EarlyReports
from pipeline.training.fit import Trained, TrainingConfig, TrainingSet, train
from pipeline.training.metrics import daily_card_precision, days_of

TOP: Final = 100
"""Alerts a day."""
FOLDS: Final = (("2018-05-27", "2018-06-17"), ("2018-06-17", "2018-07-08"))
FINAL: Final = (("2018-07-08", "2018-08-15"),)
VALIDATION_DAYS: Final = 7
REPLICATES: Final = 4_000
MEASURES: Final = ("card_precision", "transaction_precision", "average_precision")

ALL: Final = LabelRegime(delay_days=7.0)
FRAUDS: Final = LabelRegime(reported="frauds-only", delay_days=7.0)
LATE: Final = LabelRegime(reported="frauds-only", delay_days=3.0, delay_spread=0.66, never_reported=0.1)
LATE_ALL: Final = LabelRegime(delay_days=3.0, delay_spread=0.66, never_reported=0.1)
BEFORE: Final = tuple(
    name
    for name in FEATURES
    if name
    not in (
        "card_regular_mean_30d", "card_amount_to_regular", "card_seconds_since_outlier",
        "merchant_unexplained_fraud_30d", "merchant_unreported_since_fraud", "merchant_fraud_run_seconds",
        "merchant_seconds_since_first",
    )
)  # fmt: skip
"""The features of before decision 0041."""
OLD_CONFIG: Final = TrainingConfig(
    trees=200, leaves=31, learning_rate=0.07, rows_per_leaf=100, feature_fraction=0.6, early_stopping_rounds=30,
    legitimate_rows=2**31 - 1,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Variant:
    """A way to train, and the labels that it lives with."""

    name: str
    regime: LabelRegime = ALL
    features: tuple[str, ...] = DEFAULT_FEATURES
    config: TrainingConfig | None = None
    trained_under: LabelRegime | None = None
    """The regime of the training, if it is another one."""
    renewed_days: int | None = None
    """Train again after so many days; once before a fold without."""
    early_reports: bool = False
    """Whether reports of young transactions are taken at once, as `fraud-pipeline train` does by default."""


VARIANTS: Final = (
    Variant("70 features of before", features=BEFORE, config=OLD_CONFIG),
    Variant("default"),
    Variant("default, renewed weekly", renewed_days=7),
    Variant("all features", features=FEATURES),
    Variant("default, frauds-only", FRAUDS),
    Variant("70 features of before, frauds-only", FRAUDS, BEFORE, OLD_CONFIG),
    Variant("70 features of before, trained with all labels, frauds-only", FRAUDS, BEFORE, OLD_CONFIG, ALL),
    Variant("default, late, 10 % never", LATE_ALL),
    Variant("default, late, 10 % never, frauds-only", LATE),
)
"""The first one is what the others are compared with."""


class Data:
    """The file, with the features of a regime or two at a time: 0.8 GB each."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self.frame = frame
        self.fraud = self.frame["fraud"].to_numpy(bool)
        self.kind = self.frame["fraud_type"].to_numpy(str) if "fraud_type" in self.frame else None
        self.times = event_times_us(self.frame["event_time"])
        self.card = np.asarray(pd.factorize(self.frame["card_id"])[0], np.int64)
        self._identity = identities_of(self.frame)
        self._known: dict[LabelRegime, TrainingSet] = {}

    def under(self, regime: LabelRegime) -> TrainingSet:
        """Return the features of a regime."""
        if regime not in self._known:
            while len(self._known) > 1:
                del self._known[next(iter(self._known))]
            self._known[regime] = from_history(self.frame, regime)
        return self._known[regime]

    def targets(self, regime: LabelRegime, now_us: int) -> TrainingSet:
        """Return what could be trained on at a time: a fraud that is not reported by then is none."""
        known = self.under(regime)
        reported_us = np.where(self.fraud, regime.known_at_us(self.times, self.fraud, self._identity), NEVER_US)
        return TrainingSet(known.features, reported_us <= now_us, known.weight, self.times, self.card, reported_us)


def trained_at(data: Data, variant: Variant, regime: LabelRegime, now_us: int) -> Trained:
    """Train on what was known at a time."""
    targets = data.targets(regime, now_us)
    split = split_cohorts(
        data.times,
        label_delay_us=round(regime.maturity_days * US_PER_DAY),
        validation_us=VALIDATION_DAYS * US_PER_DAY,
        known_before_us=now_us,
    )
    early = EarlyReports(now_us, ReportDelays.declared(regime)) if variant.early_reports else None
    return train(targets, split, alerts_per_day=TOP, config=variant.config, features=variant.features, early=early)


def scored(
    data: Data, variant: Variant, start_us: int, end_us: int
) -> tuple[NDArray[np.intp], NDArray[np.float64], float]:
    """Return the rows of a fold, their scores, and the alerts a day at the policies' thresholds."""
    step_us = (end_us - start_us) if variant.renewed_days is None else variant.renewed_days * US_PER_DAY
    rows, scores, alerts = [], [], 0
    for now_us in range(start_us, end_us, step_us):
        trained = trained_at(data, variant, variant.trained_under or variant.regime, now_us)
        of = np.arange(*np.searchsorted(data.times, [now_us, min(now_us + step_us, end_us)]))
        score = trained.model.logit(data.under(variant.regime).features[of])
        alerts += int(np.count_nonzero(sigmoid(score) >= trained.policy.threshold))
        rows.append(of)
        scores.append(score)
    days = (end_us - start_us) / US_PER_DAY
    return np.concatenate(rows), np.concatenate(scores), alerts / days


def daily(data: Data, rows: NDArray[np.intp], score: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the `MEASURES` of each day, shape (len(MEASURES), days)."""
    fraud, times, card = data.fraud[rows], data.times[rows], data.card[rows]
    chosen = top_of_days(score, times, TOP)
    of_days = [average_precision_score(fraud[of], score[of]) if fraud[of].any() else np.nan for _, of in days_of(times)]
    return np.array(
        [
            daily_card_precision(fraud, score, times, card, TOP)[1],
            daily_precision(fraud, chosen, times, TOP)[1],
            of_days,
        ]
    )


def recall_of_kinds(data: Data, rows: NDArray[np.intp], score: NDArray[np.float64]) -> dict[str, float]:
    """Return the share of each kind of fraud among the top of its day."""
    if data.kind is None:
        return {}
    chosen = top_of_days(score, data.times[rows], TOP)
    kinds = data.kind[rows]
    return {str(kind): float(chosen[kinds == kind].mean()) for kind in np.unique(kinds[data.fraud[rows]])}


def measured(data: Data, folds: tuple[tuple[str, str], ...], say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Measure the variants on the folds, in turn; yields a row each."""
    first: NDArray[np.float64] | None = None
    for variant in VARIANTS:
        say(variant.name)
        days, alerts, periods, kinds = [], [], [], []
        for start, end in folds:
            start_us, end_us = (us_of(day) for day in (start, end))
            rows, score, a_day = scored(data, variant, start_us, end_us)
            days.append(daily(data, rows, score))
            alerts.append(a_day)
            periods.append(float(average_precision_score(data.fraud[rows], score)))
            kinds.append(recall_of_kinds(data, rows, score))
        found = np.concatenate(days, axis=1)
        first = found if first is None else first
        yield {
            "variant": variant.name,
            **{name: float(np.nanmean(row)) for name, row in zip(MEASURES, found, strict=True)},
            "average_precision_of_period": float(np.mean(periods)),
            "alerts_a_day": float(np.mean(alerts)),
            "differences": {
                name: difference(row, base) for name, row, base in zip(MEASURES, found, first, strict=True)
            },
            "recall_by_kind": {kind: float(np.mean([of[kind] for of in kinds])) for kind in kinds[0]},
        }


def difference(row: NDArray[np.float64], base: NDArray[np.float64]) -> dict[str, float | None]:
    """Return the mean difference of paired days, and the ends of its 95 % interval; both of shape (days,)."""
    found = row - base
    found = found[~np.isnan(found)]
    means = resampled(lambda drawn: np.array([drawn @ found / drawn.sum()]), len(found), REPLICATES, seed=0)
    low, high = interval(means[:, 0])
    return {"mean": float(found.mean()), "low": low, "high": high}


def us_of(day: str) -> int:
    """Return the begin of a day (UTC), in microseconds since 1970."""
    return (datetime.fromisoformat(day).replace(tzinfo=UTC) - EPOCH) // timedelta(microseconds=1)


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    names = "card precision@100 | transaction precision@100 | average precision | of the period | alerts a day"
    yield f"| variant | {names} |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for row in rows:
        cells = []
        for name in MEASURES:
            of = row["differences"][name]
            compared = "" if row is rows[0] else f" [{of['low']:+.4f}, {of['high']:+.4f}]"
            cells.append(f"{row[name]:.4f}{compared}")
        period, alerts = f"{row['average_precision_of_period']:.4f}", f"{row['alerts_a_day']:.1f}"
        yield f"| {row['variant']} | {' | '.join(cells)} | {period} | {alerts} |"


def commit() -> str:
    """Return the commit that is measured, with ``+`` where files have changed since."""
    told = subprocess.run(["git", "describe", "--always", "--dirty=+"], capture_output=True, text=True, check=False)
    return told.stdout.strip() or "unknown"


@click.command("quality")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--final", is_flag=True, help="Read the weeks that nothing was chosen on; the reading is recorded.")
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), default=Path("build/quality.json"), show_default=True
)
def command(file: Path, final: bool, output: Path) -> None:
    """Measure detection on FILE (.parquet or .csv with the Handbook's columns)."""
    folds = FINAL if final else FOLDS
    frame = load_transactions(file, resolve_mapping(file, preset="handbook"))
    rows = list(measured(Data(frame), folds, lambda text: click.echo(text, err=True)))
    output.parent.mkdir(parents=True, exist_ok=True)
    kept = json.loads(output.read_text(encoding="utf-8")) if output.exists() else {"readings": []}
    kept["readings"].append({"commit": commit(), "final": final, "folds": folds, "rows": rows})
    output.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    for line in table(rows):
        click.echo(line)
    for row in rows:
        kinds = ", ".join(f"{kind} {share:.3f}" for kind, share in row["recall_by_kind"].items())
        if kinds:
            click.echo(f"Recall among the top {TOP}, {row['variant']}: {kinds}")


if __name__ == "__main__":
    command()
