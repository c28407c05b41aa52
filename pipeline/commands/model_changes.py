"""The subcommands of ``fraud-pipeline models`` that change what is active, or whether models learn."""

from typing import Any

import click

from pipeline.commands.model_text import fact_lines
from pipeline.commands.option_types import FiniteRange
from pipeline.commands.shared_options import (
    Cluster,
    bootstrap_option,
    change_options,
    cluster,
    json_option,
    print_facts,
)
from pipeline.decision.audit_sample import Audit, with_key
from pipeline.decision.policy import LARGEST_THRESHOLD, Policy
from pipeline.models import held_labels
from pipeline.models.changes import Active, ChangeAuthor, VersionChanges
from pipeline.models.description import policy_facts
from pipeline.models.known import KnownVersion
from pipeline.models.publish import ControlWriter, changed
from pipeline.models.registry import POLICY
from pipeline.observability.terminal import printable
from pipeline.scoring.errors import ModelError
from pipeline.scoring.trees import MOST_LEAVES, MOST_TREES
from schemas.times import utc_text


def now_active(active: Active) -> str:
    """Return the sentence that names what is active."""
    return f"Active: LightGBM version {active.lightgbm} with policy {active.policy}."


@click.command()
@click.argument("version")
@click.option("--policy", "of_policy", metavar="VERSION", help="Another policy than the one that was made for it.")
@change_options
def promote(version: str, of_policy: str | None, change: ChangeAuthor, at: Cluster) -> None:
    """Make LightGBM VERSION active with the policy that was made for it, from the cluster or the registry."""
    active = changed(VersionChanges.on, *at(), lambda changes: changes.promote(version, change, of_policy))
    click.echo(now_active(active))


@click.command()
@change_options
def rollback(change: ChangeAuthor, at: Cluster) -> None:
    """Make the LightGBM version and policy active again that were active before the present ones.

    Call it again to go further back. Thresholds that were paced belong to the versions that they were paced for.
    """
    seen = list[Active]()

    def gone_back(changes: VersionChanges) -> Active:
        seen.append(changes.active())
        if seen[-1] != seen[0]:
            raise ModelError(
                f"somebody else has changed the active versions meanwhile to {' and '.join(seen[-1])}, and nothing of "
                "this was written: look at `fraud-pipeline models history`, and run it again to go back"
            )
        return changes.rollback(change)

    click.echo(now_active(changed(VersionChanges.on, *at(), gone_back)))


@click.command()
@click.option(
    "--fall-back", is_flag=True, help="Activate the last bundle that a person or `train` chose, without River too."
)
@change_options
def freeze(fall_back: bool, change: ChangeAuthor, at: Cluster) -> None:
    """Stop all learning: River takes no example in, and no program trains or activates a version.

    Decisions go on with the active versions. Examples wait in their topic, and are learned after `unfreeze`.
    """

    def switched(changes: VersionChanges) -> str:
        switch = changes.history.switch
        if switch is not None and switch.frozen:
            since = f"{utc_text(switch.switched_at)} by {printable(switch.by)}"
            return f"Learning is frozen already, since {since}: {printable(switch.reason)}"
        changes.switch_learning(change, frozen=True)
        return "Learning is frozen. Workers follow between two batches."

    click.echo(changed(VersionChanges.on, *at(), switched))
    if fall_back:
        active = changed(VersionChanges.on, *at(), lambda changes: changes.fall_back(change))
        click.echo(now_active(active) + " River takes no part (blend 0).")


@click.command()
@change_options
def unfreeze(change: ChangeAuthor, at: Cluster) -> None:
    """Let learning go on. River learns the examples that waited; the active versions stay as they are."""

    def switched(changes: VersionChanges) -> str:
        if not changes.history.frozen:
            return "Learning is not frozen."
        changes.switch_learning(change, frozen=False)
        return "Learning goes on. Workers follow between two batches."

    click.echo(changed(VersionChanges.on, *at(), switched))


@click.command("cold-start")
@click.option(
    "--fraud-share",
    type=FiniteRange(min=0, max=1, min_open=True, max_open=True),
    default=0.002,
    show_default=True,
    help="Share of frauds that you expect.",
)
@click.option(
    "--threshold",
    type=FiniteRange(min=0, max=LARGEST_THRESHOLD),
    default=0.5,
    show_default=True,
    help="Score from which on a transaction alerts.",
)
@click.option(
    "--audit-rate",
    type=FiniteRange(min=0, max=1),
    default=0.0,
    show_default=True,
    help="Share of all transactions that alert at random, so that there are labels to learn from.",
)
@change_options
def cold_start_command(
    fraud_share: float, threshold: float, audit_rate: float, change: ChangeAuthor, at: Cluster
) -> None:
    """Let the online model score alone where no LightGBM version was ever active.

    It activates a version without trees. `train --publish`, `promote` or `retrain` replace it later.
    """
    from pipeline.training.cold_start import cold_start

    made = cold_start(fraud_share, threshold, audit_rate)
    active = changed(VersionChanges.on, *at(), lambda changes: changes.start_cold(*made, change))
    click.echo(now_active(active) + " It has no trees: the online model scores alone.")


@click.command()
@bootstrap_option
@json_option
def held(bootstrap: str | None, as_json: bool) -> None:
    """Show how many labels of surges the online model has passed over, by source."""
    found = held_labels.held_examples(*cluster(bootstrap))
    counts = {source: len(held) for source, held in found.items()}
    print_facts(as_json, counts, (f"{printable(source)} {count}" for source, count in counts.items()))
    if not counts and not as_json:
        click.echo("No label is held.", err=True)


@click.command()
@click.argument("source")
@change_options
def release(source: str, change: ChangeAuthor, at: Cluster) -> None:
    """Let the online model learn the labels of SOURCE that were held as a surge."""
    released = held_labels.release(*at(), source, change)
    click.echo(f"Released: {released.examples} labels of {printable(released.source)}.")


@click.command()
@click.option("--features", help="As in `train`; `+` and `-` change those of the active version.")
@click.option("--trees", type=click.IntRange(1, MOST_TREES), help="At most.")
@click.option("--leaves", type=click.IntRange(2, MOST_LEAVES), help="Of a tree.")
@click.option("--learning-rate", type=FiniteRange(min=0, min_open=True), help="Shrinkage of each tree.")
@click.option("--legitimate-rows", type=click.IntRange(min=1), help="Sample about so many legitimate transactions.")
@click.option("--pilot-trees", type=click.IntRange(0, MOST_TREES),
              help="Of the pilot, by which legitimate transactions are sampled; 0: all alike.")  # fmt: skip
@click.option("--half-life-days", type=FiniteRange(min=0),
              help="Age at which a transaction weighs half as much; 0: all weigh alike.")  # fmt: skip
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
    from pipeline.retraining.cluster_reader import ClusterLog
    from pipeline.retraining.proposal import active_champion
    from pipeline.retraining.proposal import propose as compared
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
    active, signed = changed(
        VersionChanges.on, *at(), lambda changes: (changes.approve(version, change), changes.knows_signers)
    )
    click.echo(now_active(active))
    if not signed:
        click.echo(
            "Nobody can verify that two people agreed: records are not signed, and only the names were compared. Set "
            "FRAUD_PIPELINE_SIGNING_KEY_FILE, a key for each person.",
            err=True,
        )


@click.group()
def policy() -> None:
    """Show the active policy, or make one active that differs from it."""


@policy.command("show")
@bootstrap_option
@json_option
def show_policy(bootstrap: str | None, as_json: bool) -> None:
    """Show the active policy."""
    active = VersionChanges.on(*cluster(bootstrap)).active_policy()
    facts = policy_facts(KnownVersion(POLICY, active.version, active.payload))
    print_facts(as_json, facts, fact_lines(facts))


@policy.command("set")
@click.option("--threshold", type=FiniteRange(0, LARGEST_THRESHOLD), help="Alert at or above this score.")
@click.option("--blend", type=FiniteRange(0, 1), help="Part of River in a score; 0 leaves it out.")
@click.option("--audit-rate", type=FiniteRange(0, 1), help="Share of all transactions that is audited.")
@click.option("--audit-key-id", help="Key of FRAUD_PIPELINE_AUDIT_KEYS that orders it.  [default: the active policy's]")
@click.option("--max-reasons", type=click.IntRange(min=1), help="Most reasons of an alert.")
@change_options
def set_policy(
    threshold: float | None,
    blend: float | None,
    audit_rate: float | None,
    audit_key_id: str | None,
    max_reasons: int | None,
    change: ChangeAuthor,
    at: Cluster,
) -> None:
    """Make a new policy active: the present one with what you give. All else stays as it is."""
    if audit_key_id is not None and not audit_rate:
        raise click.UsageError("--audit-key-id orders an audit: give its --audit-rate too")
    named = {"threshold": threshold, "blend": blend, "audit_rate": audit_rate, "max_reasons": max_reasons}
    given: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    if not given:
        raise click.UsageError("give what to change: --threshold, --blend, --audit-rate or --max-reasons")
    servers, settings = at()

    def policies(changes: VersionChanges) -> tuple[Policy, Policy]:
        before, own = changes.active_policy(), dict(given)
        if audit_rate:
            held = None if before.audit is None else before.audit.key_id
            own["audit"] = with_key(Audit(rate=audit_rate), audit_key_id or held, settings.audit_keys)
            own["audit_rate"] = 0.0
        return before, changes.set_policy(own, change)

    before, after = changed(VersionChanges.on, servers, settings, policies)
    click.echo(f"Active: policy {after.version} (was {before.version}).")
