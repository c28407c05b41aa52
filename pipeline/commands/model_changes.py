"""The subcommands of ``fraud-pipeline models`` that change what is active, or whether models learn."""

from typing import Any

import click

from pipeline.commands.failures import one_sentence
from pipeline.commands.model_options import bootstrap_option, cluster, json_option, said, said_options
from pipeline.commands.model_text import fact_lines, json_line
from pipeline.decision.policy import LARGEST_THRESHOLD, Policy, Rule
from pipeline.demo.text import printable, utc_text
from pipeline.models.changes import Active, VersionChanges, switch_learning
from pipeline.models.description import policy_facts
from pipeline.models.history import VersionHistory
from pipeline.models.known import KnownVersion
from pipeline.models.publish import ControlWriter
from pipeline.registry import POLICY


def _now_active(active: Active) -> str:
    return f"Active: LightGBM version {active.lightgbm} with policy {active.policy}."


@click.command()
@click.argument("version")
@click.option("--policy", "of_policy", metavar="VERSION", help="Another policy than the one that was made for it.")
@bootstrap_option
@said_options
def promote(version: str, of_policy: str | None, bootstrap: str | None, reason: str, by: str | None) -> None:
    """Make LightGBM VERSION active with the policy that was made for it, from the cluster or the registry."""
    change = said(by, reason)
    with one_sentence():
        active = VersionChanges.on(*cluster(bootstrap)).promote(version, change, of_policy)
    click.echo(_now_active(active))


@click.command()
@bootstrap_option
@said_options
def rollback(bootstrap: str | None, reason: str, by: str | None) -> None:
    """Make the LightGBM version and policy active again that were active before the present ones.

    Call it again to go further back. Thresholds that were paced belong to the versions that they were paced for.
    """
    change = said(by, reason)
    with one_sentence():
        active = VersionChanges.on(*cluster(bootstrap)).rollback(change)
    click.echo(_now_active(active))


@click.command()
@click.option(
    "--fall-back", is_flag=True, help="Activate the last bundle that a person or `train` chose, without River too."
)
@bootstrap_option
@said_options
def freeze(fall_back: bool, bootstrap: str | None, reason: str, by: str | None) -> None:
    """Stop all learning: River takes no example in, and no program trains or activates a version.

    Decisions go on with the active versions. Examples wait in their topic, and are learned after `unfreeze`.
    """
    change = said(by, reason)
    with one_sentence():
        servers, settings = cluster(bootstrap)
        switch = VersionHistory.on(servers, settings).switch
        changes = VersionChanges.on(servers, settings) if fall_back else None
        if switch is not None and switch.frozen:
            since = f"{utc_text(switch.switched_at)} by {printable(switch.by)}"
            click.echo(f"Learning is frozen already, since {since}: {printable(switch.reason)}")
        else:
            switch_learning(ControlWriter(servers, settings), change, frozen=True)
            click.echo("Learning is frozen. Workers follow between two batches.")
        if changes is not None:
            click.echo(_now_active(changes.fall_back(change)) + " River takes no part (blend 0).")


@click.command()
@bootstrap_option
@said_options
def unfreeze(bootstrap: str | None, reason: str, by: str | None) -> None:
    """Let learning go on. River learns the examples that waited; the active versions stay as they are."""
    change = said(by, reason)
    with one_sentence():
        servers, settings = cluster(bootstrap)
        if not VersionHistory.on(servers, settings).frozen:
            click.echo("Learning is not frozen.")
            return
        switch_learning(ControlWriter(servers, settings), change, frozen=False)
    click.echo("Learning goes on. Workers follow between two batches.")


@click.group()
def policy() -> None:
    """Show the active policy, or make one active that differs from it."""


@policy.command("show")
@bootstrap_option
@json_option
def show_policy(bootstrap: str | None, as_json: bool) -> None:
    """Show the active policy."""
    with one_sentence():
        active = VersionChanges.on(*cluster(bootstrap)).active_policy()
    facts = policy_facts(KnownVersion(POLICY, active.version, active.payload))
    if as_json:
        click.echo(json_line(facts))
        return
    for line in fact_lines(facts):
        click.echo(line)


@policy.command("set")
@click.option("--threshold", type=click.FloatRange(0, LARGEST_THRESHOLD), help="Alert at or above this score.")
@click.option("--blend", type=click.FloatRange(0, 1), help="Part of River in a score; 0 leaves it out.")
@click.option("--audit-rate", type=click.FloatRange(0, 1), help="Share of all transactions that is audited.")
@click.option("--max-reasons", type=click.IntRange(min=1), help="Most reasons of an alert.")
@click.option(
    "--rule",
    "rules",
    type=(str, str, str, float, str),
    multiple=True,
    metavar="CODE FEATURE OP VALUE SENTENCE",
    help="Add a rule, or replace the one of this code; may be repeated.",
)
@click.option("--remove-rule", "removed", multiple=True, metavar="CODE", help="Remove a rule; may be repeated.")
@bootstrap_option
@said_options
def set_policy(
    threshold: float | None,
    blend: float | None,
    audit_rate: float | None,
    max_reasons: int | None,
    rules: tuple[tuple[str, str, str, float, str], ...],
    removed: tuple[str, ...],
    bootstrap: str | None,
    reason: str,
    by: str | None,
) -> None:
    """Make a new policy active: the present one with what you give. All else stays as it is."""
    change = said(by, reason)
    named = {"threshold": threshold, "blend": blend, "audit_rate": audit_rate, "max_reasons": max_reasons}
    given: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    if not given and not rules and not removed:
        raise click.UsageError("give what to change: --threshold, --blend, --audit-rate, --max-reasons or a rule")
    with one_sentence():
        changes = VersionChanges.on(*cluster(bootstrap))
        before = changes.active_policy()
        if rules or removed:
            given["rules"] = changed_rules(before, rules, removed)
        after = changes.set_policy(given, change)
    click.echo(f"Active: policy {after.version} (was {before.version}).")


def changed_rules(
    before: Policy, rules: tuple[tuple[str, str, str, float, str], ...], removed: tuple[str, ...]
) -> tuple[Rule, ...]:
    """Return a policy's rules without those removed, and with those added.

    Raises:
        click.UsageError: A rule that should be removed is not there.
    """
    there = {rule.code: rule for rule in before.rules}
    for code in removed:
        if code not in there:
            listed = ", ".join(there) or "none"
            raise click.UsageError(f"policy {before.version} has no rule {code!r}; it has {listed}")
        del there[code]
    for code, feature, op, value, sentence in rules:
        there[code] = Rule(code=code, feature=feature, op=op, value=value, sentence=sentence)
    return tuple(there.values())
