"""The options of ``fraud-pipeline train``, by what they decide about."""

from datetime import datetime
from pathlib import Path
from typing import Final, TypedDict

import click

from pipeline.commands.column_options import ColumnOptions
from pipeline.commands.option_groups import option_group
from pipeline.commands.times import Moment
from pipeline.learning.regimes import LabelRegime
from pipeline.scoring.trees import MOST_LEAVES, MOST_TREES
from pipeline.training.fit import DEFAULT_BUDGET, TrainingConfig

_DEFAULTS: Final = TrainingConfig()
source_options: Final = option_group(
    click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path)),
    click.option("--from-topics", is_flag=True, help="Train on what was served: the newest 120 days of `features`."),
    click.option("--bootstrap", help="Cluster to read and publish to.  [default: KAFKA_BOOTSTRAP_SERVERS]"),
)
"""FILE, and the options for a training on topics."""
period_options: Final = option_group(
    click.option("--train-from", type=Moment(), help="Event time of the first transaction to train on."),
    click.option(
        "--known-before",
        "--train-to",
        type=Moment(),
        help="Use only what was known then.  [default: end of the history]",
    ),
    click.option(
        "--label-delay-days",
        type=click.FloatRange(min=0),
        help="From a transaction to its label.  [default: 7; with --from-topics, the setting maturity_days]",
    ),
)
"""The options for the transactions that are trained on; with `validation_options` their values are `PeriodOptions`."""
validation_options: Final = option_group(
    click.option(
        "--early-reports/--no-early-reports",
        default=None,
        help="Grow the version also on younger transactions: frauds as they are reported, others as far as their age "
        "tells.  [default: early-reports, of a FILE]",
    ),
    click.option(
        "--validation-days",
        type=click.FloatRange(min=0, min_open=True),
        default=7.0,
        show_default=True,
        help="Last days of the history, which stop the training, calibrate it and set the threshold.",
    ),
)
"""The options for the newest of these transactions."""
policy_options: Final = option_group(
    click.option(
        "--budget-per-day",
        type=click.FloatRange(min=0, min_open=True),
        default=DEFAULT_BUDGET,
        show_default=True,
        help="Alerts a day that analysts can look at.",
    ),
    click.option(
        "--audit-share",
        type=click.FloatRange(min=0, max=1, min_open=True, max_open=True),
        help="Give this share of the budget to an audit, such as 0.05.  [default: the active policy's audit]",
    ),
    click.option(
        "--audit-key-id",
        help="Key of FRAUD_PIPELINE_AUDIT_KEYS that orders the audit.  [default: the active policy's]",
    ),
)
"""The options for budget and audit, whose values are `BudgetOptions`."""
recipe_options: Final = option_group(
    click.option(
        "--legitimate-rows",
        type=click.IntRange(min=1),
        default=_DEFAULTS.legitimate_rows,
        show_default=True,
        help="Sample about so many legitimate transactions to grow trees on.",
    ),
    click.option(
        "--features",
        help="Train on those that match, such as card_*,-*_std_*; +NAME adds to the default, -NAME removes, * is all.",
    ),
    click.option(
        "--trees", type=click.IntRange(1, MOST_TREES), default=_DEFAULTS.trees, show_default=True, help="At most."
    ),
    click.option(
        "--tree-folds",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Choose the number of trees on so many rolling folds, and keep it in the recipe; 0: on the validation "
        "period.",
    ),
    click.option(
        "--leaves", type=click.IntRange(2, MOST_LEAVES), default=_DEFAULTS.leaves, show_default=True, help="Of a tree."
    ),
    click.option(
        "--learning-rate",
        type=click.FloatRange(min=0, min_open=True),
        default=_DEFAULTS.learning_rate,
        show_default=True,
        help="Shrinkage of each tree.",
    ),
    click.option(
        "--threads", type=click.IntRange(min=1), default=_DEFAULTS.threads, show_default=True, help="To train."
    ),
    click.option(
        "--wrong-labels",
        is_flag=True,
        help="Measure how it does on wrong labels, for the model card: five more trainings.",
    ),
    click.option(
        "--seed", type=click.IntRange(min=0), default=_DEFAULTS.seed, show_default=True, help="Of all sampling."
    ),
)
"""The options for the growth of the trees, whose values are `RecipeOptions`."""
version_options: Final = option_group(
    click.option(
        "--activate/--no-activate", default=True, show_default=True, help="Make it the registry's active version."
    ),
    click.option(
        "--force", is_flag=True, help="Make a version although it tells frauds apart hardly better than chance."
    ),
    click.option("--publish", is_flag=True, help="Activate it on the cluster; workers swap between two batches."),
    click.option(
        "--registry",
        "registry_dir",
        type=click.Path(file_okay=False, path_type=Path),
        help="Where to register it.  [default: FRAUD_PIPELINE_REGISTRY_DIR]",
    ),
)
"""The options for the new version, whose values are `VersionOptions`."""


class PeriodOptions(TypedDict):
    """The values of `period_options` and `validation_options`."""

    train_from: datetime | None
    known_before: datetime | None
    label_delay_days: float | None
    early_reports: bool | None
    validation_days: float


class BudgetOptions(TypedDict):
    """The alerts of the new policy."""

    budget_per_day: float
    audit_share: float | None
    audit_key_id: str | None


class RecipeOptions(TypedDict):
    """The growth of the trees."""

    legitimate_rows: int
    features: str | None
    trees: int
    tree_folds: int
    leaves: int
    learning_rate: float
    threads: int
    wrong_labels: bool
    seed: int


class VersionOptions(TypedDict):
    """The place of the new version."""

    activate: bool
    force: bool
    publish: bool
    registry_dir: Path | None


class TrainOptions(ColumnOptions, PeriodOptions, BudgetOptions, RecipeOptions, VersionOptions):
    """All options of the command but its source."""

    regime: LabelRegime


def training_config(options: RecipeOptions) -> TrainingConfig:
    """Return the hyperparameters that a command's options name."""
    return TrainingConfig(
        trees=options["trees"],
        leaves=options["leaves"],
        learning_rate=options["learning_rate"],
        legitimate_rows=options["legitimate_rows"],
        threads=options["threads"],
        seed=options["seed"],
    )
