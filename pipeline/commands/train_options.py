"""The options of ``fraud-pipeline train``."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from pipeline.learning.regimes import LabelRegime
from pipeline.training.fit import DEFAULT_BUDGET, TrainingConfig


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Rows to train on, the recipe, and the place of the version."""

    from_topics: Annotated[bool, Meta(description="Train on what was served: the newest 120 days of `features`.")] = (
        False
    )
    bootstrap: Annotated[
        str | None, Meta(description="Cluster to read and publish to.  [default: KAFKA_BOOTSTRAP_SERVERS]")
    ] = None
    train_from: Annotated[datetime | None, Meta(description="Event time of the first transaction to train on.")] = None
    known_before: Annotated[
        datetime | None,
        Meta(
            description="Use only what was known then.  [default: end of the history]",
            extra={"option": "--known-before --train-to"},
        ),
    ] = None
    label_delay_days: Annotated[
        float | None,
        Meta(
            ge=0,
            description="From a transaction to its label.  [default: 7; with --from-topics, the setting maturity_days]",
        ),
    ] = None
    regime: LabelRegime
    early_reports: Annotated[
        bool | None,
        Meta(
            description="Grow the version also on younger transactions: frauds as they are reported, others as far as "
            "their age tells.  [default: early-reports, of a FILE]",
        ),
    ] = None
    validation_days: Annotated[
        float,
        Meta(
            gt=0,
            description="Last days of the history, which stop the training, calibrate it and set the threshold.",
        ),
    ] = 7.0
    budget_per_day: Annotated[float, Meta(gt=0, description="Cases a day that analysts can look at.")] = DEFAULT_BUDGET
    audit_share: Annotated[
        float | None,
        Meta(
            gt=0,
            lt=1,
            description="Give this share of the budget to an audit, such as 0.05.  [default: the active policy's "
            "audit]",
        ),
    ] = None
    audit_key_id: Annotated[
        str | None,
        Meta(description="Key of FRAUD_PIPELINE_AUDIT_KEYS that orders the audit.  [default: the active policy's]"),
    ] = None
    features: Annotated[
        str | None,
        Meta(
            description="Train on those that match, such as card_*,-*_std_*; +NAME adds to the default, -NAME removes, "
            "* is all."
        ),
    ] = None
    config: TrainingConfig
    tree_folds: Annotated[
        int,
        Meta(
            ge=0,
            description="Choose the number of trees on so many rolling folds, and keep it in the recipe; 0: on the "
            "validation period.",
        ),
    ] = 0
    wrong_labels: Annotated[
        bool,
        Meta(description="Measure how it does on wrong labels, for the model card: five more trainings."),
    ] = False
    activate: Annotated[bool, Meta(description="Make it the registry's active version.")] = True
    force: Annotated[
        bool, Meta(description="Make a version although it tells frauds apart hardly better than chance.")
    ] = False
    publish: Annotated[bool, Meta(description="Activate it on the cluster; workers swap between two batches.")] = False
    registry_dir: Annotated[
        Path | None,
        Meta(
            description="Where to register it.  [default: FRAUD_PIPELINE_REGISTRY_DIR]",
            extra={"option": "--registry registry_dir", "directory": True},
        ),
    ] = None
