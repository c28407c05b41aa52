"""The subcommands of ``fraud-pipeline models`` for new recipes: one person proposes, another may have to approve."""

from typing import Any

import click

from pipeline.commands.model_changes import now_active
from pipeline.commands.option_types import FiniteRange
from pipeline.commands.shared_options import Cluster, change_options
from pipeline.models.changes import ChangeAuthor, VersionChanges
from pipeline.models.publish import ControlWriter
from pipeline.scoring.trees import MOST_LEAVES, MOST_TREES


@click.command()
@click.option("--features", help="As in `train`; `+` and `-` change those of the active version.")
@click.option("--trees", type=click.IntRange(1, MOST_TREES), help="At most.")
@click.option("--leaves", type=click.IntRange(2, MOST_LEAVES), help="Of a tree.")
@click.option("--learning-rate", type=FiniteRange(min=0, min_open=True), help="Shrinkage of each tree.")
@click.option("--legitimate-rows", type=click.IntRange(min=1), help="Sample about so many legitimate transactions.")
@click.option("--early-reports/--no-early-reports", default=None, help="Train on younger transactions too, or not.")
@click.option("--maturity-days", type=FiniteRange(min=0), help="Age at which an unreported transaction is legitimate.")
@click.option(
    "--compare-days", type=click.IntRange(min=2), default=28, show_default=True, help="Mature days to compare on."
)
@click.option(
    "--fold-days", type=click.IntRange(min=1), default=7, show_default=True, help="Days between two trainings."
)
@click.option("--window-days", type=FiniteRange(min=0, min_open=True), default=120.0, show_default=True,
              help="Train on decisions of the newest days.")  # fmt: skip
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="To train.")
@change_options
def propose(
    features: str | None,
    early_reports: bool | None,
    maturity_days: float | None,
    compare_days: int,
    fold_days: int,
    window_days: float,
    threads: int,
    change: ChangeAuthor,
    at: Cluster,
    **hyperparameters: Any,
) -> None:
    """Compare another recipe with the active one, and make a version of it active if it finds more frauds.

    What you do not give stays as it is in the active version's recipe. Both recipes are trained again and again on what
    was known at the time, and score the days behind. There is one look at each day. With
    FRAUD_PIPELINE_SECOND_APPROVAL somebody else has to approve the version. Exit code 1 means that it was rejected.
    """
    # Training is imported where it is needed: it takes seconds.
    import msgspec

    from pipeline.retraining.challenger import CycleOptions, recipe_of
    from pipeline.retraining.proposal import active_champion
    from pipeline.retraining.proposal import propose as compared
    from pipeline.retraining.topics import ClusterLog
    from pipeline.training.selection import refuse_barred, select_features

    given: dict[str, Any] = {name: value for name, value in hyperparameters.items() if value is not None}
    servers, settings = at()
    topics = ClusterLog(servers, settings, window_days)
    topics.read()
    recipe = recipe_of(active_champion(topics).model)
    recipe = recipe._replace(
        config=msgspec.structs.replace(recipe.config, **given),
        features=select_features(features.split(",") if features else [], recipe.features),
        early_reports=recipe.early_reports if early_reports is None else early_reports,
        maturity_days=recipe.maturity_days if maturity_days is None else maturity_days,
    )
    refuse_barred(recipe.features, settings.barred_features)
    options = CycleOptions(fallback_days=settings.maturity_days, compare_days=compare_days, threads=threads)
    found = compared(
        topics,
        ControlWriter(servers, settings),
        recipe,
        change,
        options,
        second_approval=settings.second_approval,
        fold_days=fold_days,
    )
    click.echo(f"{found.outcome} {found.lightgbm}: {found.reason}")
    if found.outcome == "accepted":
        click.echo(f"Somebody else than {change.by} approves it with `fraud-pipeline models approve {found.lightgbm}`.")
    elif found.outcome != "promoted":
        raise SystemExit(1)


@click.command()
@click.argument("version")
@change_options
def approve(version: str, change: ChangeAuthor, at: Cluster) -> None:
    """Make LightGBM VERSION active, which somebody else has proposed and the gate has accepted.

    Where records are signed, somebody else is who signs with another key. Without signatures only the names are
    compared, which nobody can verify.
    """
    changes = VersionChanges.on(*at())
    active = changes.approve(version, change)
    click.echo(now_active(active))
    if not changes.knows_signers:
        click.echo(
            "Nobody can verify that two people agreed: records are not signed, and only the names were compared. Set "
            "FRAUD_PIPELINE_SIGNING_KEY_FILE, a key for each person.",
            err=True,
        )
