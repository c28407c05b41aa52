"""``fraud-pipeline train``: train, calibrate and register a LightGBM version with a policy for it."""

import json
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple, Unpack

import click
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.backtest import frame_tables
from pipeline.backtest.input.eligible import eligible_rows
from pipeline.commands.model_options import one_sentence
from pipeline.commands.progress import seldom
from pipeline.commands.regime_options import RegimeOptions, regime_options
from pipeline.commands.replay import Moment, file_mapping
from pipeline.decision.audit import Audit, with_key
from pipeline.decision.policy import Policy
from pipeline.engine.history import event_times_us
from pipeline.features.catalogue import FEATURES
from pipeline.history.files import PRESETS, ColumnMapping, UnusableSource, column_names, load_transactions
from pipeline.kafka.errors import TopicError
from pipeline.kafka.producer import DeliveryFailed
from pipeline.learning.regimes import NEVER_US, LabelRegime
from pipeline.learning.report_delays import ReportDelays, described_by_source
from pipeline.learning.trained_labels import TrainedLabels, warning_of_labels, warning_of_share
from pipeline.models.changes import refuse_unapproved
from pipeline.models.history import VersionHistory
from pipeline.models.publish import ModelChange, VersionToPublish, publish_active
from pipeline.models.registry import LIGHTGBM, POLICY, Registry, RegistryError
from pipeline.observability.terminal import printable
from pipeline.retraining.topics import read_served
from pipeline.scoring.errors import ModelError
from pipeline.scoring.lightgbm_model import LightGBMModel
from pipeline.settings import Settings
from pipeline.settings.kernel_options import card_options
from pipeline.settings.rate_table import RatesError, load_rates
from pipeline.training.audit import AUDIT_FEATURES, audit_within_budget
from pipeline.training.cohorts import Split, split_cohorts
from pipeline.training.datasets import from_history
from pipeline.training.early_reports import EarlyReports
from pipeline.training.fit import TrainingConfig, TrainingSet, train, with_trees_of_folds
from pipeline.training.registered import register
from pipeline.training.segments import SEGMENT_FEATURES
from pipeline.training.selection import refuse_barred, select_features
from pipeline.training.served import WINDOW_DAYS, ServedRows
from schemas.codec import timestamp_us
from schemas.times import US_PER_DAY

_DEFAULTS = TrainingConfig()
BY_TRAIN: Final = "train"
"""The name that an activation gives as its maker."""
ADDRESSES: Final = frozenset({"file", "bootstrap", "registry_dir", "activate", "force", "publish"})
"""Arguments that decide nothing about the version."""
LATER: Final = {"corrected_share": 0.0, "correction_days": 7.0}
"""Arguments that came later, with the defaults at which they are left out: a version of before can be trained again."""
DECIDING: Final = ("base_currency", "future_tolerance_s", "dedup_horizon_days", "label_horizon_days", "maturity_days")
"""Settings that decide about it, beside the rate table."""


@click.command("train")
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--from-topics", is_flag=True, help="Train on what was served: the newest 120 days of `features`.")
@click.option("--bootstrap", help="Cluster to read and publish to.  [default: KAFKA_BOOTSTRAP_SERVERS]")
@click.option("--preset", type=click.Choice(sorted(PRESETS)), help="Column names; found by themselves when they fit.")
@click.option("--map", "changes", multiple=True, metavar="FIELD=COLUMN", help="Column of a field; may be repeated.")
@click.option("--currency", default="EUR", show_default=True, help="Currency of a file without such a column.")
@click.option("--time-zone", default="UTC", show_default=True, help="Zone of times without an offset.")
@click.option("--train-from", type=Moment(), help="Event time of the first transaction to train on.")
@click.option(
    "--known-before", "--train-to", type=Moment(), help="Use only what was known then.  [default: end of the history]"
)
@click.option(
    "--label-delay-days",
    type=click.FloatRange(min=0),
    help="From a transaction to its label.  [default: 7; with --from-topics, the setting maturity_days]",
)
@regime_options
@click.option(
    "--early-reports/--no-early-reports",
    default=None,
    help="Grow the version also on younger transactions: frauds as they are reported, others as far as their age tells."
    "  [default: early-reports, of a FILE]",
)
@click.option(
    "--validation-days",
    type=click.FloatRange(min=0, min_open=True),
    default=7.0,
    show_default=True,
    help="Last days of the history, which stop the training, calibrate it and set the threshold.",
)
@click.option(
    "--budget-per-day",
    type=click.FloatRange(min=0, min_open=True),
    default=100.0,
    show_default=True,
    help="Alerts a day that analysts can look at.",
)
@click.option(
    "--audit-share",
    type=click.FloatRange(min=0, max=1, min_open=True, max_open=True),
    help="Give this share of the budget to an audit, such as 0.05.  [default: the active policy's audit]",
)
@click.option(
    "--audit-key-id",
    help="Key of FRAUD_PIPELINE_AUDIT_KEYS that orders the audit.  [default: the active policy's]",
)
@click.option(
    "--legitimate-rows",
    type=click.IntRange(min=1),
    default=_DEFAULTS.legitimate_rows,
    show_default=True,
    help="Sample about so many legitimate transactions to grow trees on.",
)
@click.option(
    "--features",
    help="Train on those that match, such as card_*,-*_std_*; +NAME adds to the default, -NAME removes, * is all.",
)
@click.option("--trees", type=click.IntRange(min=1), default=_DEFAULTS.trees, show_default=True, help="At most.")
@click.option(
    "--tree-folds",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Choose the number of trees on so many rolling folds, and keep it in the recipe; 0: on the validation period.",
)
@click.option("--leaves", type=click.IntRange(min=2), default=_DEFAULTS.leaves, show_default=True, help="Of a tree.")
@click.option(
    "--learning-rate",
    type=click.FloatRange(min=0, min_open=True),
    default=_DEFAULTS.learning_rate,
    show_default=True,
    help="Shrinkage of each tree.",
)
@click.option("--threads", type=click.IntRange(min=1), default=_DEFAULTS.threads, show_default=True, help="To train.")
@click.option(
    "--wrong-labels", is_flag=True, help="Measure how it does on wrong labels, for the model card: five more trainings."
)
@click.option("--seed", type=click.IntRange(min=0), default=_DEFAULTS.seed, show_default=True, help="Of all sampling.")
@click.option(
    "--activate/--no-activate", default=True, show_default=True, help="Make it the registry's active version."
)
@click.option("--force", is_flag=True, help="Make a version although it tells frauds apart hardly better than chance.")
@click.option("--publish", is_flag=True, help="Activate it on the cluster; workers swap between two batches.")
@click.option(
    "--registry", "registry_dir", type=click.Path(file_okay=False, path_type=Path),
    help="Where to register it.  [default: FRAUD_PIPELINE_REGISTRY_DIR]",
)  # fmt: skip
def command(
    file: Path | None,
    from_topics: bool,
    bootstrap: str | None,
    preset: str | None,
    changes: tuple[str, ...],
    currency: str,
    time_zone: str,
    train_from: datetime | None,
    known_before: datetime | None,
    label_delay_days: float | None,
    early_reports: bool | None,
    validation_days: float,
    budget_per_day: float,
    audit_share: float | None,
    audit_key_id: str | None,
    legitimate_rows: int,
    features: str | None,
    trees: int,
    tree_folds: int,
    leaves: int,
    learning_rate: float,
    threads: int,
    wrong_labels: bool,
    seed: int,
    activate: bool,
    force: bool,
    publish: bool,
    registry_dir: Path | None,
    **declared: Unpack[RegimeOptions],
) -> None:
    """Train on the transactions of FILE (.parquet, .csv, .csv.gz), or on what was served.

    Features come from the kernel that live traffic uses, with labels known only after their delay. The new policy keeps
    blend, audit and rules of the active one. One JSON line on the standard output names the versions and metrics.
    """
    if (file is None) == (not from_topics):
        raise click.UsageError("name a FILE or give --from-topics, one of the two")
    if audit_key_id is not None and audit_share is None:
        raise click.UsageError("--audit-key-id orders a new audit: give its --audit-share too")
    settings = Settings()
    if audit_key_id is not None:
        try:
            with_key(Audit(rate=1.0), audit_key_id, settings.audit_keys)
        except ModelError as error:
            raise click.UsageError(str(error)) from error
    servers = bootstrap or settings.kafka_bootstrap_servers
    if (from_topics or publish) and servers is None:
        raise click.UsageError(
            "name a cluster with --bootstrap or KAFKA_BOOTSTRAP_SERVERS (`fraud-pipeline broker` starts one)"
        )
    if publish and settings.second_approval:
        with one_sentence():
            refuse_unapproved(VersionHistory.on(servers or "", settings), "a version of `train`")
    registry = Registry(registry_dir or settings.registry_path)
    details: dict[str, Any] = {"request": _request(settings)}
    started_s = time.monotonic()
    try:
        chosen = select_features(features.split(",") if features else [])
        refuse_barred(chosen, settings.barred_features)
        default_days = settings.maturity_days if file is None else 7.0
        delay_days = label_delay_days if label_delay_days is not None else default_days
        if file is not None:
            mapping = file_mapping(file, changes, preset, currency, time_zone)
            regime = LabelRegime(delay_days=delay_days, **declared)
            asked = {*chosen, *SEGMENT_FEATURES, *(AUDIT_FEATURES if audit_share is not None else ())}
            names = tuple(name for name in FEATURES if name in asked)
            rows = _of_file(file, mapping, settings, regime, known_before, names, early=early_reports is not False)
        else:
            rows = _of_topics(servers or "", settings, delay_days, known_before, early=early_reports is True)
        data = rows.data
        _echo(f"features are there after {time.monotonic() - started_s:.1f} s; growing trees")
        split = _split(data, rows.delay_days, validation_days, train_from, known_before)
        policy = _active_policy(registry)
        if audit_share is not None:
            held = None if policy is None or policy.audit is None else policy.audit.key_id
            audit = audit_within_budget(data, split, audit_share * budget_per_day)
            audit = with_key(audit, audit_key_id or held, settings.audit_keys)
            policy = (policy or Policy(0.5)).replace(audit=audit, audit_rate=0.0)
        config = TrainingConfig(
            trees=trees,
            leaves=leaves,
            learning_rate=learning_rate,
            legitimate_rows=legitimate_rows,
            threads=threads,
            seed=seed,
        )
        if tree_folds:
            delay_us = round(rows.delay_days * US_PER_DAY)
            config = with_trees_of_folds(data, split, config, chosen, delay_us, tree_folds)
        trained = train(
            data,
            split,
            alerts_per_day=budget_per_day * (1 - (audit_share or 0.0)),
            config=config,
            policy=policy,
            features=chosen,
            early=rows.early,
            labels=rows.labels,
            details=details,
            force=force,
            wrong_labels=wrong_labels,
            report=seldom(_echo),
        )
        _warn_of_labels(trained.model, settings)
        register(registry, trained)
        if activate:
            registry.activate(LIGHTGBM, trained.model.version)
            registry.activate(POLICY, trained.policy.version)
        if publish:
            publish_champion(servers or "", settings, trained.model, trained.policy)
    except (UnusableSource, ModelError, RatesError, RegistryError, TopicError, DeliveryFailed) as error:
        raise click.ClickException(str(error)) from error
    click.echo(
        json.dumps(
            {
                "lightgbm": trained.model.version,
                "policy": trained.policy.version,
                "activated": activate,
                "published": publish,
                "registry": str(registry.path),
                "seconds": round(time.monotonic() - started_s, 1),
                "periods": trained.model.metadata["periods"],
                "metrics": trained.metrics,
            }
        )
    )


class _TrainingInput(NamedTuple):
    """Rows to train on, with what is known of their labels."""

    data: TrainingSet
    delay_days: float
    """Age from which a transaction is a target."""
    early: EarlyReports | None
    labels: TrainedLabels


def _of_file(
    file: Path,
    mapping: ColumnMapping,
    settings: Settings,
    regime: LabelRegime,
    known_before: datetime | None,
    names: tuple[str, ...],
    *,
    early: bool,
) -> _TrainingInput:
    """Compute the features of a file; raises `UnusableSource`, `ModelError`."""
    # What lies behind the date takes no part, not even in the features.
    if ignored := sorted(set(column_names(file)) - set(mapping.columns.values())):
        _echo(f"columns that are not used: {', '.join(map(printable, ignored))}")
    frame = load_transactions(file, mapping, end=known_before)
    frame = _eligible_rows(frame, settings)
    _echo(f"{len(frame):,} transactions, {int(frame['fraud'].sum()) if 'fraud' in frame else 0:,} of them fraud")
    known_us = _known_until(event_times_us(frame["event_time"]), known_before)
    data = from_history(frame, regime, known_us, names, report=seldom(_echo))
    reports = EarlyReports(known_us, ReportDelays.declared(regime)) if early else None
    labels = TrainedLabels(known_us, round(regime.maturity_days * US_PER_DAY), regime.describe())
    return _TrainingInput(data, regime.maturity_days, reports, labels)


def _of_topics(
    servers: str, settings: Settings, delay_days: float, known_before: datetime | None, *, early: bool
) -> _TrainingInput:
    """Read what a cluster served; raises `ModelError`, `TopicError`."""
    rows = _served(servers, settings)
    before_us = _microseconds(known_before)
    data = rows.training_set(NEVER_US if before_us is None else before_us)
    _echo(f"{len(rows):,} decisions, {int(data.fraud.sum()):,} of them known as fraud")
    known_us = _known_until(data.event_time_us, known_before)
    reports = _early_of(rows, known_us, delay_days) if early else None
    described: dict[str, str | float] = {"reported": settings.label_regime} if settings.label_regime else {}
    by_source = described_by_source(rows.event_time_us, rows.reported_us, rows.reported_by, known_us)
    labels = TrainedLabels(known_us, round(delay_days * US_PER_DAY), described, by_source)
    return _TrainingInput(data, delay_days, reports, labels)


def _eligible_rows(frame: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """The transactions that workers would decide: no others have features, or move a window. Reports what is left out.

    Amounts come back in the base currency, converted by the rate table, as workers convert them.
    """
    found = eligible_rows(frame_tables(frame), card_options(settings, load_rates(settings), partitions=1))
    if found.refused:
        codes = ", ".join(f"{code} {count:,}" for code, count in found.refused.most_common())
        _echo(f"{found.refused.total():,} transactions are left out, since workers refuse them: {codes}")
    if found.repeated:
        _echo(f"{found.repeated:,} transactions are left out, since they repeat others")
    if not len(found.row):
        raise ModelError("no transaction is left to train on: workers would refuse all of them")
    if foreign := sorted(set(frame["currency"]) - {settings.base_currency}):
        _echo(f"amounts in {', '.join(map(printable, foreign))} are converted to {settings.base_currency}")
    taken = frame if len(found.row) == len(frame) else frame.iloc[found.row].reset_index(drop=True)
    return taken.assign(amount_minor=found.amount_base_minor, currency=settings.base_currency)


def publish_champion(servers: str, settings: Settings, model: LightGBMModel, policy: Policy) -> None:
    """Make a LightGBM version and its policy active on the cluster, both at once; raises ``DeliveryFailed``."""
    contents = [
        VersionToPublish(LIGHTGBM, model.version, model.to_payload()),
        VersionToPublish(POLICY, policy.version, policy.to_payload()),
    ]
    figures = {"metrics": model.metadata["metrics"]} if "metrics" in model.metadata else {}
    publish_active(servers, settings, contents, ModelChange("publish", BY_TRAIN, "", figures))


def _request(settings: Settings) -> dict[str, Any]:
    """Return the arguments of this training and the settings that decide about it, without addresses.

    They are in the version's metadata: the same arguments on the same history give the same version.
    """
    given = click.get_current_context().params
    arguments = {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in sorted(given.items())
        if name not in ADDRESSES and (name not in LATER or value != LATER[name])
    }
    return {"arguments": arguments, "settings": {name: getattr(settings, name) for name in DECIDING}}


def _split(
    data: TrainingSet,
    delay_days: float,
    validation_days: float,
    train_from: datetime | None,
    known_before: datetime | None,
) -> Split:
    return split_cohorts(
        data.event_time_us,
        label_delay_us=round(delay_days * US_PER_DAY),
        validation_us=round(validation_days * US_PER_DAY),
        train_from_us=_microseconds(train_from),
        known_before_us=_microseconds(known_before),
    )


def _warn_of_labels(model: LightGBMModel, settings: Settings) -> None:
    """Say so if workers with these settings would use the version under other labels."""
    found = [warning_of_share(model, round(settings.maturity_days * US_PER_DAY), settings.reported_share)]
    if settings.label_regime:
        found.append(warning_of_labels(model, settings.label_regime))
    for warning in filter(None, found):
        _echo(f"warning: {warning}")


def _known_until(event_time_us: NDArray[np.int64], known_before: datetime | None) -> int:
    """Return until when what was known is used; by default, until the history ends."""
    known_us = _microseconds(known_before)
    return int(event_time_us.max()) if known_us is None else known_us


def _microseconds(moment: datetime | None) -> int | None:
    return None if moment is None else timestamp_us(moment)


def _active_policy(registry: Registry) -> Policy | None:
    version = registry.active(POLICY)
    return None if version is None else registry.load_policy(version)


def _served(servers: str, settings: Settings) -> ServedRows:
    """Return the newest days of what a cluster served."""
    served = read_served(servers, settings, WINDOW_DAYS)
    rows = served.rows()
    if not len(rows):
        raise ModelError(
            "topic features holds no decision to train on"
            + (f" ({served.other_kernel} are of another kernel version)" if served.other_kernel else "")
            + ": train from a file until workers have decided"
        )
    return rows


def _early_of(rows: ServedRows, known_us: int, delay_days: float) -> EarlyReports:
    """Return how reports of what was served are taken at once, by the delays of old ones."""
    fallback = LabelRegime(delay_days=delay_days)
    reported_us = rows.reports_by(known_us)
    return EarlyReports(known_us, ReportDelays.estimated(rows.event_time_us, reported_us, known_us, fallback=fallback))


def _echo(text: str) -> None:
    click.echo(text, err=True)
    sys.stderr.flush()
