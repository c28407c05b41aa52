"""``fraud-pipeline train``: train, calibrate and register a LightGBM version with a policy for it."""

import json
import time
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from pipeline.commands.file_mapping import file_mapping, mapping_option
from pipeline.commands.option_groups import declared_options
from pipeline.commands.shared_options import named_servers
from pipeline.commands.train_options import TrainOptions
from pipeline.commands.training_input import TrainingInput, echo, microseconds, rows_of_file, rows_of_topics
from pipeline.decision.audit_sample import Audit, with_key
from pipeline.decision.policy import Policy
from pipeline.features.catalogue import FEATURES
from pipeline.learning.trained_labels import warning_of_labels, warning_of_share
from pipeline.models.changes import ChangeAuthor, VersionChanges, refuse_unapproved
from pipeline.models.publish import changed
from pipeline.models.registry import POLICY, Registry
from pipeline.observability.terminal import throttled
from pipeline.scoring.errors import ModelError
from pipeline.scoring.lightgbm_model import LightGBMModel
from pipeline.settings import Settings
from pipeline.training.audit_rates import AUDIT_FEATURES, audit_within_budget
from pipeline.training.cohorts import Split, TrainingSet, split_cohorts
from pipeline.training.fit import Trained, train, with_trees_of_folds
from pipeline.training.registered import register
from pipeline.training.selection import refuse_barred, select_features
from pipeline.training.validation import SEGMENT_FEATURES
from schemas.times import US_PER_DAY

BY_TRAIN: Final = "train"
"""The name that an activation gives as its maker."""
ADDRESSES: Final = frozenset({"file", "bootstrap", "registry_dir", "activate", "force", "publish"})
"""Arguments that decide nothing about the version."""
LATER: Final = {"corrected_share": 0.0, "correction_days": 7.0, "mapping": None}
"""Arguments that came later, with the defaults at which they are left out: a version of before can be trained again."""
FORMER: Final = {"changes": (), "currency": "EUR", "preset": None, "time_zone": "UTC"}
"""Arguments that are gone, with their defaults: they stay recorded, for the same reason."""
DECIDING: Final = {
    "base_currency": "base_currency",
    "future_tolerance_s": "future_tolerance_s",
    "dedup_horizon_days": "deduplication_days",
    "label_horizon_days": "label_grace_days",
    "maturity_days": "maturity_days",
}
"""Settings that decide about it, beside the rate table, by the names that versions record."""


@click.command("train")
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@mapping_option
@declared_options("options", TrainOptions, without=("delay_days",))
def command(file: Path | None, mapping: Path | None, options: TrainOptions) -> None:
    """Train on the transactions of FILE (.parquet, .csv, .jsonl, the last two also .gz), or on what was served.

    Features come from the kernel that live traffic uses, with labels known only after their delay. The new policy keeps
    blend and audit of the active one: the cluster's with `--publish`, else the registry's. One JSON line on the
    standard output names the versions and metrics.
    """
    if (file is None) == (not options.from_topics):
        raise click.UsageError("name a FILE or give --from-topics, one of the two")
    settings = _checked_settings(options)
    servers = named_servers(options.bootstrap, settings) if options.from_topics or options.publish else ""
    registry = Registry(options.registry_dir or settings.registry_path)
    request = _request(settings)
    started_s = time.monotonic()
    before = _policy_before(servers, settings, registry, publish=options.publish)
    features = select_features(options.features.split(",") if options.features else [])
    refuse_barred(features, settings.barred_features)
    rows = _read(file, mapping, servers, settings, options, features)
    echo(f"features are there after {time.monotonic() - started_s:.1f} s; growing trees")
    trained = _trained(rows, before, settings, options, features, request)
    _warn_of_labels(trained.model, settings)
    register(registry, trained, activate=options.activate and not options.publish)
    if options.publish:
        trained = changed(VersionChanges.on, servers, settings, partial(_published, trained, options))
        register(registry, trained, activate=options.activate)
    summary = {
        "lightgbm": trained.model.version,
        "policy": trained.policy.version,
        "activated": options.activate,
        "published": options.publish,
        "registry": str(registry.path),
        "seconds": round(time.monotonic() - started_s, 1),
        "periods": trained.model.metadata["periods"],
        "metrics": trained.metrics,
    }
    click.echo(json.dumps(summary))


def _checked_settings(options: TrainOptions) -> Settings:
    """Return the settings; a usage error where the audit's key is not among them."""
    key_id = options.audit_key_id
    if key_id is not None and options.audit_share is None:
        raise click.UsageError("--audit-key-id orders a new audit: give its --audit-share too")
    settings = Settings()
    if key_id is not None:
        try:
            with_key(Audit(rate=1.0), key_id, settings.audit_keys)
        except ModelError as error:
            raise click.UsageError(str(error)) from error
    return settings


def _read(
    file: Path | None,
    mapping: Path | None,
    servers: str,
    settings: Settings,
    options: TrainOptions,
    features: tuple[str, ...],
) -> TrainingInput:
    """Return the rows to train on: of a file, or of what a cluster served."""
    default_days = settings.maturity_days if file is None else 7.0
    delay_days = options.label_delay_days if options.label_delay_days is not None else default_days
    early, known_before = options.early_reports, options.known_before
    if file is None:
        return rows_of_topics(servers, settings, delay_days, known_before, early=early is True)
    regime = msgspec.structs.replace(options.regime, delay_days=delay_days)
    wanted = {*features, *SEGMENT_FEATURES, *(AUDIT_FEATURES if options.audit_share is not None else ())}
    names = tuple(name for name in FEATURES if name in wanted)
    found = file_mapping(file, mapping, settings)
    return rows_of_file(file, found, settings, regime, known_before, names, early=early is not False)


def _trained(
    rows: TrainingInput,
    policy: Policy | None,
    settings: Settings,
    options: TrainOptions,
    features: tuple[str, ...],
    request: dict[str, Any],
) -> Trained:
    """Train a version, and choose the threshold of its policy."""
    data, config = rows.data, options.config
    split = _split(rows, options)
    policy = _with_audit(policy, data, split, settings, options)
    if options.tree_folds:
        delay_us = round(rows.delay_days * US_PER_DAY)
        config = with_trees_of_folds(data, split, config, features, delay_us, options.tree_folds)
    return train(
        data,
        split,
        alerts_per_day=options.budget_per_day * (1 - (options.audit_share or 0.0)),
        config=config,
        policy=policy,
        features=features,
        early=rows.early,
        labels=rows.labels,
        details={"request": request},
        force=options.force,
        wrong_labels=options.wrong_labels,
        report=throttled(echo),
    )


def _with_audit(
    policy: Policy | None, data: TrainingSet, split: Split, settings: Settings, options: TrainOptions
) -> Policy | None:
    """Return the policy with the audit that ``--audit-share`` asks for; as it is without."""
    share = options.audit_share
    if share is None:
        return policy
    active_key = None if policy is None or policy.audit is None else policy.audit.key_id
    audit = audit_within_budget(data, split, share * options.budget_per_day)
    audit = with_key(audit, options.audit_key_id or active_key, settings.audit_keys)
    return (policy or Policy(0.5)).replace(audit=audit, audit_rate=0.0)


def _request(settings: Settings) -> dict[str, Any]:
    """Return the arguments of this training and the settings that decide about it, without addresses.

    They are in the version's metadata: the same arguments on the same history give the same version.
    """
    given = FORMER | click.get_current_context().params
    arguments = {
        name: _recorded(value)
        for name, value in sorted(given.items())
        if name not in ADDRESSES and (name not in LATER or value != LATER[name])
    }
    return {
        "arguments": arguments,
        "settings": {name: getattr(settings, setting) for name, setting in DECIDING.items()},
    }


def _recorded(value: Any) -> Any:
    """Return an argument as JSON has it: of a file that decides its content, since its path says nothing."""
    if isinstance(value, Path):
        return value.read_text(encoding="utf-8")
    return value.isoformat() if isinstance(value, datetime) else value


def _split(rows: TrainingInput, options: TrainOptions) -> Split:
    return split_cohorts(
        rows.data.event_time_us,
        label_delay_us=round(rows.delay_days * US_PER_DAY),
        validation_us=round(options.validation_days * US_PER_DAY),
        train_from_us=microseconds(options.train_from),
        known_before_us=microseconds(options.known_before),
    )


def _warn_of_labels(model: LightGBMModel, settings: Settings) -> None:
    """Say so if workers with these settings would use the version under other labels."""
    found = [warning_of_share(model, round(settings.maturity_days * US_PER_DAY), settings.reported_share)]
    if settings.label_regime:
        found.append(warning_of_labels(model, settings.label_regime))
    for warning in filter(None, found):
        echo(f"warning: {warning}")


def _policy_before(servers: str, settings: Settings, registry: Registry, *, publish: bool) -> Policy | None:
    """Return the active policy of the cluster where the version is published, else of the registry.

    Raises:
        ModelError: Somebody else has to approve what would be published.
    """
    if publish:
        changes = VersionChanges.on(servers, settings)
        if settings.second_approval:
            refuse_unapproved(changes.history, "a version of `train`")
        return changes.inherited_policy()
    version = registry.active(POLICY)
    return None if version is None else registry.load_policy(version)


def _published(trained: Trained, options: TrainOptions, changes: VersionChanges) -> Trained:
    """Publish a version with the policy that is active by now: training takes a while. Return it with its policy."""
    made, active = trained.policy, changes.inherited_policy()
    if active is not None:
        chosen = {"threshold": made.threshold, "lightgbm_version": made.lightgbm_version, "metadata": made.metadata}
        audit = {} if options.audit_share is None else {"audit": made.audit, "audit_rate": 0.0}
        trained = replace(trained, policy=active.replace(**chosen, **audit))
    changes.publish(trained.model, trained.policy, ChangeAuthor(BY_TRAIN, ""))
    return trained
