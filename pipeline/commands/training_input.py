"""The input of ``fraud-pipeline train``: rows with features and labels, from a file or from what was served."""

import sys
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import click

from pipeline.backtest.input.span import LATEST_US
from pipeline.backtest.training.training_history import read_history
from pipeline.history.files import ColumnMapping, column_names, file_tables, is_json
from pipeline.history.mapped_files import FileMapping, mapped_tables, refusal_text
from pipeline.learning.regimes import NEVER_US, LabelRegime
from pipeline.learning.report_delays import ReportDelays, described_by_source
from pipeline.learning.trained_labels import TrainedLabels
from pipeline.observability.terminal import printable, throttled
from pipeline.retraining.cluster_reader import read_served
from pipeline.scoring.errors import ModelError
from pipeline.settings import Settings
from pipeline.settings.kernel_options import card_options
from pipeline.settings.rate_table import load_rates
from pipeline.training.cohorts import TrainingSet
from pipeline.training.early_reports import EarlyReports
from pipeline.training.served import WINDOW_DAYS
from schemas.codec import timestamp_us
from schemas.times import US_PER_DAY


class TrainingInput(NamedTuple):
    """Rows to train on, with what is known of their labels."""

    data: TrainingSet
    delay_days: float
    """Age from which a transaction is a target."""
    early: EarlyReports | None
    labels: TrainedLabels


def rows_of_file(
    file: Path,
    mapping: ColumnMapping | FileMapping,
    settings: Settings,
    regime: LabelRegime,
    known_before: datetime | None,
    names: tuple[str, ...],
    *,
    early: bool,
) -> TrainingInput:
    """Compute the features ``names`` of a file's transactions, whose truth becomes labels by ``regime``.

    Nothing takes part from ``known_before`` on. With ``early`` younger transactions are trained on too.

    Raises:
        UnusableSource: The file cannot be read.
        ModelError: No transaction is left.
    """
    # What lies behind the date takes no part, not even in the features.
    columns = () if is_json(file) else column_names(file)
    if ignored := sorted(set(columns) - set(mapping.columns.values())):
        echo(f"columns that are not used: {', '.join(map(printable, ignored))}")
    before_us = microseconds(known_before)
    history = read_history(
        mapped_tables(file, mapping) if isinstance(mapping, FileMapping) else file_tables(file, mapping),
        regime,
        card_options(settings, load_rates(settings), partitions=1),
        names,
        throttled(echo),
        time_zone=mapping.time_zone,
        end_us=LATEST_US if before_us is None else before_us,
    )
    if history.first_refused is not None:
        echo(printable(refusal_text(file, history.refused, history.first_refused)))
    if history.repeated:
        echo(f"{history.repeated:,} transactions are left out, since they repeat others")
    if foreign := sorted(history.currencies - {settings.base_currency}):
        echo(f"amounts in {', '.join(map(printable, foreign))} are converted to {settings.base_currency}")
    echo(f"{len(history.number):,} transactions, {history.frauds:,} of them fraud")
    known_us = history.last_us if before_us is None else before_us
    data = history.training_set(known_us)
    reports = EarlyReports(known_us, ReportDelays(regime)) if early else None
    labels = TrainedLabels(known_us, round(regime.maturity_days * US_PER_DAY), regime.describe())
    return TrainingInput(data, regime.maturity_days, reports, labels)


def rows_of_topics(
    servers: str, settings: Settings, delay_days: float, known_before: datetime | None, *, early: bool
) -> TrainingInput:
    """Read what a cluster served; targets are ``delay_days`` old, with the labels known at ``known_before``.

    Raises:
        ModelError: Nothing was served.
        TopicError: A topic cannot be read.
    """
    served = read_served(servers, settings, WINDOW_DAYS)
    rows = served.rows()
    if not len(rows):
        raise ModelError(
            "topic features holds no decision to train on"
            + (f" ({served.other_kernel} are of another kernel version)" if served.other_kernel else "")
            + ": train from a file until workers have decided"
        )
    before_us = microseconds(known_before)
    data = rows.training_set(NEVER_US if before_us is None else before_us)
    echo(f"{len(rows):,} decisions, {int(data.fraud.sum()):,} of them known as fraud")
    known_us = int(data.event_time_us.max()) if before_us is None else before_us
    reports = None
    if early:
        fallback, reported_us = LabelRegime(delay_days=delay_days), rows.reports_by(known_us)
        delays = ReportDelays.estimated(rows.event_time_us, reported_us, known_us, fallback=fallback)
        reports = EarlyReports(known_us, delays)
    described: dict[str, str | float] = {"reported": settings.label_regime} if settings.label_regime else {}
    by_source = described_by_source(rows.event_time_us, rows.reported_us, rows.reported_by, known_us)
    labels = TrainedLabels(known_us, round(delay_days * US_PER_DAY), described, by_source)
    return TrainingInput(data, delay_days, reports, labels)


def microseconds(moment: datetime | None) -> int | None:
    """Return a time in microseconds since 1970."""
    return None if moment is None else timestamp_us(moment)


def echo(text: str) -> None:
    """Report progress on the standard error."""
    click.echo(text, err=True)
    sys.stderr.flush()
