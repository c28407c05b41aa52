"""``fraud-pipeline models``: look at the versions of a cluster or of the registry, and change the active ones."""

from datetime import datetime
from typing import Any, Final

import click
import msgspec

from pipeline.cli import LazyGroup
from pipeline.commands.model_text import (
    difference_lines,
    event_lines,
    fact_lines,
    figure,
    json_line,
    table_lines,
)
from pipeline.commands.option_types import Moment
from pipeline.commands.shared_options import bootstrap_option, cluster, json_option, print_facts, registry_option
from pipeline.models.description import differences, facts_of, measured_cost
from pipeline.models.known import KnownVersion, KnownVersions
from pipeline.models.library import PublishedVersions
from pipeline.models.registry import Registry
from pipeline.models.version_history import BUNDLED, Mention, VersionHistory, event_time
from pipeline.observability.terminal import printable_json
from pipeline.scoring.errors import ModelError
from pipeline.settings import Settings
from schemas.messages import Activation
from schemas.times import utc_text

_HERE: Final = "pipeline.commands.models"
_CHANGES: Final = "pipeline.commands.model_changes"
_PAGES: Final = "pipeline.commands.model_pages"
SUBCOMMANDS: Final[dict[str, tuple[str, str]]] = {
    "approve": (f"{_CHANGES}:approve", "Make a version active that somebody else has proposed."),
    "at": (f"{_HERE}:at", "Show the versions that were active at a time."),
    "card": (f"{_PAGES}:card", "Write the model card of a version."),
    "cold-start": (f"{_CHANGES}:cold_start_command", "Let the online model score alone, without trees."),
    "diff": (f"{_HERE}:diff", "Show in what two versions differ."),
    "freeze": (f"{_CHANGES}:freeze", "Stop all learning."),
    "held": (f"{_CHANGES}:held", "Show what is held of surges of labels."),
    "history": (f"{_HERE}:history", "List activations, assessments and switches, newest first."),
    "list": (f"{_HERE}:list_versions", "List versions, newest first."),
    "policy": (f"{_CHANGES}:policy", "Show or change the active policy."),
    "promote": (f"{_CHANGES}:promote", "Make a LightGBM version active, with its policy."),
    "propose": (f"{_CHANGES}:propose", "Compare another recipe with the active one."),
    "rebuild": (f"{_PAGES}:rebuild", "Train a version again, and compare."),
    "release": (f"{_CHANGES}:release", "Release held labels of a source."),
    "rollback": (f"{_CHANGES}:rollback", "Go back to the versions before the active ones."),
    "show": (f"{_HERE}:show", "Show what is known of a version."),
    "unfreeze": (f"{_CHANGES}:unfreeze", "Let learning go on."),
}


@click.group(cls=LazyGroup, lazy=SUBCOMMANDS)
def command() -> None:
    """Look at versions of models, and change the active ones.

    A VERSION is 12 hexadecimal digits; the first 4 are enough where no other version has them.
    """


@click.command("list")
@bootstrap_option
@registry_option
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="At most so many versions.")
@json_option
def list_versions(bootstrap: str | None, of_registry: bool, limit: int, as_json: bool) -> None:
    """List LightGBM versions and policies, newest first.

    `time`, `by` and `step` are of the newest record that names a version. `validation` is the average precision of its
    training, or the threshold of a policy.
    """
    rows = registry_rows(limit) if of_registry else rows_of(*published_versions(bootstrap), limit)
    if as_json:
        for row in rows:
            click.echo(json_line(row))
        return
    for line in table_lines([_cells(row) for row in rows]):
        click.echo(line)


def rows_of(published: PublishedVersions, registry: Registry, limit: int) -> list[dict[str, Any]]:
    """Return published versions, ready for JSON; one whose content cannot be read says so.

    Args:
        published: Versions of the cluster.
        registry: The local registry, which may have the content of a version too.
        limit: Largest number of rows; the newest versions stay.
    """
    known, model_set = KnownVersions(registry, published), published.model_set
    active = {model.digest for model in (model_set.lightgbm, model_set.policy) if model is not None}
    return [_cluster_row(mention, known, active) for mention in published.history.mentions()[:limit]]


def _cluster_row(mention: Mention, known: KnownVersions, active: set[str]) -> dict[str, Any]:
    reference, event = mention.reference, mention.event
    row = {
        "time": event_time(event).isoformat(),
        "first_time": mention.first_at.isoformat(),
        "version": reference.digest[:12],
        "kind": reference.name,
        "active": reference.digest in active,
        "by": event.by,
        "step": event.step if isinstance(event, Activation) else event.outcome,
        "reason": event.reason,
    }
    try:
        return row | {"facts": _short(known.at(reference))}
    except ModelError as error:
        return row | {"error": str(error)}


def registry_rows(limit: int) -> list[dict[str, Any]]:
    """Return the newest versions of the registry, ready for JSON; raises `pipeline.models.registry.RegistryError`."""
    registry = Registry(Settings().registry_path)
    known = KnownVersions(registry)
    entries = sorted(
        (entry for name in BUNDLED for entry in registry.entries(name)),
        key=lambda version: version.created,
        reverse=True,
    )
    return [
        {
            "time": entry.created.isoformat(),
            "version": entry.version,
            "kind": entry.name,
            "active": registry.active(entry.name) == entry.version,
            "by": "",
            "step": "register",
            "facts": _short(known.at_entry(entry)),
        }
        for entry in entries[:limit]
    ]


def _short(known: KnownVersion) -> dict[str, Any]:
    facts = facts_of(known)
    kept = ("threshold", "blend", "audit_rate", "lightgbm_version", "kernel", "trees", "periods", "metrics")
    return {name: facts[name] for name in kept if name in facts}


def _cells(row: dict[str, Any]) -> dict[str, str]:
    shown = figure(row["kind"], row["facts"]) if "facts" in row else "unreadable"
    time = utc_text(datetime.fromisoformat(row["time"]))[:16]
    return row | {"time": time, "active": "active" if row["active"] else "", "validation": shown}


@click.command()
@click.argument("version")
@bootstrap_option
@registry_option
@json_option
def show(version: str, bootstrap: str | None, of_registry: bool, as_json: bool) -> None:
    """Show what is known of VERSION: how it was made, how it did on its validation period, and what it costs.

    `microseconds_a_row` is measured on this machine: of the score of each transaction, and of the reasons of an alert.
    """
    known = versions(bootstrap, of_registry).find(version)
    facts = facts_of(known) | {"microseconds_a_row": measured_cost(known)}
    print_facts(as_json, facts, fact_lines(facts))


@click.command()
@click.argument("first")
@click.argument("second")
@bootstrap_option
@registry_option
@json_option
def diff(first: str, second: str, bootstrap: str | None, of_registry: bool, as_json: bool) -> None:
    """Show in what version SECOND differs from version FIRST; both LightGBM versions, or both policies."""
    known = versions(bootstrap, of_registry)
    before, after = known.find(first), known.find(second)
    if before.name != after.name:
        raise ModelError(f"{first} is a {before.name} version and {second} a {after.name} version: name two of a kind")
    found = differences(facts_of(before), facts_of(after))
    by_name = {name: {"before": a, "after": b} for name, (a, b) in found.items()}
    print_facts(as_json, by_name, difference_lines(found, before.version, after.version))


def versions(bootstrap: str | None, of_registry: bool) -> KnownVersions:
    """Return the versions of a cluster and the registry, or of the registry alone; raises as `cluster`."""
    if of_registry:
        return KnownVersions(Registry(Settings().registry_path))
    published, registry = published_versions(bootstrap)
    return KnownVersions(registry, published)


def published_versions(bootstrap: str | None, *, or_registry: bool = True) -> tuple[PublishedVersions, Registry]:
    """Return the versions of a cluster, and the registry; raises `ModelError`, `TopicError`, and as `cluster`."""
    servers, settings = cluster(bootstrap, or_registry=or_registry)
    published = PublishedVersions.on(servers, settings)
    return published, Registry(settings.registry_path)


@click.command()
@click.argument("time", type=Moment())
@bootstrap_option
@json_option
def at(time: datetime, bootstrap: str | None, as_json: bool) -> None:
    """Show the LightGBM version and the policy that were active at TIME.

    Workers follow within moments; each decision names the versions that made it, the online model's too.
    """
    published, _ = published_versions(bootstrap, or_registry=False)
    active = published.model_set_at(time).active
    switch = published.history.until(time).switch
    if active is None:
        raise ModelError(f"no version was active at {utc_text(time)}; `fraud-pipeline models history` has them all")
    frozen = switch is not None and switch.frozen
    lightgbm, policy = active.lightgbm.version, active.policy.version
    found = {"time": time.isoformat(), "lightgbm": lightgbm, "policy": policy, "frozen": frozen}
    learning = "frozen" if frozen else "on"
    print_facts(as_json, found, (f"lightgbm {lightgbm}", f"policy   {policy}", f"learning {learning}"))


@click.command()
@bootstrap_option
@click.option("--limit", type=click.IntRange(min=1), help="At most so many records.")
@json_option
def history(bootstrap: str | None, limit: int | None, as_json: bool) -> None:
    """List all activations, assessments and switches of learning, newest first."""
    events = VersionHistory.on(*cluster(bootstrap)).events[::-1][:limit]
    for event in events:
        if as_json:
            click.echo(printable_json(msgspec.json.encode(event).decode()))
        else:
            for line in event_lines(event):
                click.echo(line)
    if not events:
        click.echo("control holds no record of versions", err=True)
