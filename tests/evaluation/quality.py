"""``python -m tests.evaluation.quality FILE``: detection of the pipeline's models, with intervals.

Trains by the project's own code on what was known before a fold, and scores the fold's days. ``docs/quality.md`` says
what the figures mean. Choose on the folds; only ``--final`` reads the weeks that nothing was chosen on.
"""

import json
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from pipeline import Backtest, Training
from pipeline.backtest.bootstrap import interval, resampled
from pipeline.backtest.metrics import daily_precision, top_of_days
from pipeline.engine.decisions import Decisions
from pipeline.engine.history import event_times_us
from pipeline.engine.models import ActiveModels
from pipeline.features.catalogue import DEFAULT_FEATURES, FEATURES
from pipeline.learning.regimes import LabelRegime
from pipeline.scoring.blend import sigmoid
from pipeline.scoring.river_factory import first_river
from pipeline.settings import Settings
from pipeline.sources import load_transactions, resolve_mapping
from pipeline.training.fit import TrainingConfig
from pipeline.training.metrics import daily_card_precision, days_of

TOP: Final = 100
"""Alerts a day."""
FOLDS: Final = (("2018-05-27", "2018-06-17"), ("2018-06-17", "2018-07-08"))
FINAL: Final = (("2018-07-08", "2018-08-15"),)
TRAIN_FROM: Final = "2018-04-08"
"""No label could be known in the days before."""
VALIDATION_DAYS: Final = 7.0
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
    renewed_days: tuple[float, ...] = ()
    """For each, another variant that is trained again after so many days; this one is trained once before a fold."""
    learns: bool = False
    """Measure each with an online model too, which learns from the warm-up on."""
    early_reports: bool = False
    """Take reports of young transactions at once; `tests.evaluation.renewed` measures what that brings."""


VARIANTS: Final = (
    Variant("70 features of before", features=BEFORE, config=OLD_CONFIG),
    Variant("default", renewed_days=(7, 1), learns=True),
    Variant("all features", features=FEATURES),
    Variant("default, frauds-only", FRAUDS),
    Variant("70 features of before, frauds-only", FRAUDS, BEFORE, OLD_CONFIG),
    Variant("70 features of before, trained with all labels, frauds-only", FRAUDS, BEFORE, OLD_CONFIG, ALL),
    Variant("default, late, 10 % never", LATE_ALL),
    Variant("default, late, 10 % never, frauds-only", LATE, renewed_days=(7, 1), learns=True),
)
"""The first one is what the others are compared with."""


class Data:
    """Truth and columns of the file."""

    def __init__(self, file: Path) -> None:
        self.file, self.mapping = file, resolve_mapping(file, preset="handbook")
        frame = load_transactions(file, self.mapping)
        self.fraud = frame["fraud"].to_numpy(bool)
        self.kind = frame["fraud_type"].to_numpy(str) if "fraud_type" in frame else None
        self.times = event_times_us(frame["event_time"])
        self.card = np.asarray(pd.factorize(frame["card_id"])[0], np.int64)

    def backtest(self, regime: LabelRegime, start: datetime, end: datetime, **more: Any) -> Backtest:
        """Return a backtest of some days under a label regime, with no version in force."""
        return Backtest(
            self.file,
            start=start,
            end=end,
            mapping=self.mapping,
            label_delay_s=regime.delay_days * 86_400.0,
            reported=regime.reported,
            legitimate_share=regime.legitimate_share,
            delay_spread=regime.delay_spread,
            early_share=regime.early_share,
            early_hours=regime.early_hours,
            never_reported=regime.never_reported,
            validation_days=VALIDATION_DAYS,
            settings=Settings(data_dir=Path("build/quality"), registry_dir=None, kafka_bootstrap_servers=None),
            **more,
        )


class Scored:
    """Scores of a fold as log-odds, and how many alerts they raise."""

    def __init__(self) -> None:
        self.rows: list[NDArray[np.int64]] = []
        self.scores: list[NDArray[np.float64]] = []
        self.alerts = 0

    def add(self, rows: NDArray[np.int64], score: NDArray[np.float64], threshold: float) -> None:
        """Add rows of the file with their scores."""
        self.rows.append(rows)
        self.scores.append(score)
        self.alerts += int(np.count_nonzero(sigmoid(score) >= threshold))


def scored(data: Data, variant: Variant, start: datetime, end: datetime) -> dict[str, Scored]:
    """Score a fold by a variant, and by those beside it that are renewed or corrected by the online model."""
    found: defaultdict[str, Scored] = defaultdict(Scored)

    def take(name: str, decisions: Decisions) -> None:
        rows, threshold = decisions.transactions.row, decisions.models.policy.threshold
        found[name].add(rows, decisions.logit, threshold)
        if variant.learns:
            found[f"{name}, with River"].add(rows, decisions.river_logit, threshold)

    training = Training(
        variants={variant.name: variant.features},
        start=at(TRAIN_FROM),
        alerts_per_day=TOP,
        config=variant.config or TrainingConfig(),
        renew_days=variant.renewed_days,
        early_reports=variant.early_reports,
    )
    if variant.trained_under is None:
        backtest = data.backtest(variant.regime, start, end, training=training, learn=variant.learns)
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
    of_days = [average_precision_score(fraud[of], score[of]) if fraud[of].any() else np.nan for _, of in days_of(times)]
    return np.array(
        [
            daily_card_precision(fraud, score, times, card, TOP)[1],
            daily_precision(fraud, chosen, times, TOP)[1],
            of_days,
        ]
    )


def recall_of_kinds(data: Data, rows: NDArray[np.int64], score: NDArray[np.float64]) -> dict[str, float]:
    """Return the share of each kind of fraud among the top of its day."""
    if data.kind is None:
        return {}
    chosen = top_of_days(score, data.times[rows], TOP)
    kinds = data.kind[rows]
    return {str(kind): float(chosen[kinds == kind].mean()) for kind in np.unique(kinds[data.fraud[rows]])}


def measured(
    data: Data, variants: Sequence[Variant], folds: tuple[tuple[str, str], ...], say: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """Measure variants on the folds, in turn; yields a row each, and one for each that is renewed or corrected."""
    first: NDArray[np.float64] | None = None
    for variant in variants:
        of_folds: defaultdict[str, list[_OfFold]] = defaultdict(list)
        for start, end in folds:
            say(f"{variant.name}, {start} to {end}")
            for name, one in scored(data, variant, at(start), at(end)).items():
                of_folds[name].append(_of_fold(data, one, (at(end) - at(start)) / timedelta(days=1)))
        for name, measures in of_folds.items():
            found = np.concatenate([one.days for one in measures], axis=1)
            first = found if first is None else first
            yield {
                "variant": name,
                **{measure: float(np.nanmean(row)) for measure, row in zip(MEASURES, found, strict=True)},
                "average_precision_of_period": float(np.mean([one.period for one in measures])),
                "alerts_a_day": float(np.mean([one.alerts for one in measures])),
                "differences": {
                    measure: difference(row, base) for measure, row, base in zip(MEASURES, found, first, strict=True)
                },
                "recall_by_kind": {
                    kind: float(np.mean([one.kinds[kind] for one in measures])) for kind in measures[0].kinds
                },
            }


class _OfFold(NamedTuple):
    """Figures of a fold."""

    days: NDArray[np.float64]
    """Shape (len(MEASURES), days)."""
    period: float
    """Average precision of all transactions."""
    alerts: float
    """A day."""
    kinds: dict[str, float]


def _of_fold(data: Data, scored: Scored, days: float) -> _OfFold:
    rows, score = np.concatenate(scored.rows), np.concatenate(scored.scores)
    return _OfFold(
        daily(data, rows, score),
        float(average_precision_score(data.fraud[rows], score)),
        scored.alerts / days,
        recall_of_kinds(data, rows, score),
    )


def difference(row: NDArray[np.float64], base: NDArray[np.float64]) -> dict[str, float | None]:
    """Return the mean difference of paired days, and the ends of its 95 % interval; both of shape (days,)."""
    found = row - base
    found = found[~np.isnan(found)]
    means = resampled(lambda drawn: np.array([drawn @ found / drawn.sum()]), len(found), REPLICATES, seed=0)
    low, high = interval(means[:, 0])
    return {"mean": float(found.mean()), "low": low, "high": high}


def at(day: str) -> datetime:
    """Return when a day begins (UTC)."""
    return datetime.fromisoformat(day).replace(tzinfo=UTC)


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
@click.option("--only", multiple=True, metavar="NAME", help="A variant; may be repeated.  [default: all of them]")
def command(file: Path, final: bool, output: Path, only: tuple[str, ...]) -> None:
    """Measure detection on FILE (.parquet or .csv with the Handbook's columns)."""
    folds = FINAL if final else FOLDS
    variants = [variant for variant in VARIANTS if not only or variant.name in only]
    if not variants:
        raise click.UsageError(f"there is no such variant; these are there: {', '.join(one.name for one in VARIANTS)}")
    rows = list(measured(Data(file), variants, folds, lambda text: click.echo(text, err=True)))
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
