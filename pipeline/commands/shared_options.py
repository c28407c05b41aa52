"""Options that several commands share, and what they say of a cluster and of who makes a change."""

import functools
import getpass
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

import click

from pipeline.broker.running import ClusterNotFound, find_cluster
from pipeline.commands.model_text import json_line
from pipeline.decision.rules import CONTROL
from pipeline.models.changes import ChangeAuthor
from pipeline.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])
Cluster = Callable[[], tuple[str, Settings]]
"""Returns a cluster's address, and the settings."""

bootstrap_option = click.option("--bootstrap", help="Cluster to use.  [default: KAFKA_BOOTSTRAP_SERVERS]")
registry_option = click.option("--registry", "of_registry", is_flag=True, help="Of the local registry, not a cluster.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, one object a line.")


def change_options(function: F) -> F:
    """Add ``--bootstrap``, ``--reason`` and ``--by``, and pass on what they say.

    The command gets ``change``, who makes a change and why, and ``at``, which returns what `cluster` does.
    """

    @bootstrap_option
    @click.option("--reason", required=True, help="Why, in one sentence; it is kept with the change.")
    @click.option("--by", help="Who makes the change.  [default: your user name]")
    @functools.wraps(function)
    def with_change(bootstrap: str | None, reason: str, by: str | None, **given: Any) -> Any:
        if (name := user_name() if by is None else by) is None:
            raise click.UsageError("this system knows no user name: name yourself with --by")
        change = ChangeAuthor(one_line("--by", name), one_line("--reason", reason))
        if given.get("owner") is not None:
            given["owner"] = one_line("--owner", given["owner"])
        return function(change=change, at=functools.partial(cluster, bootstrap), **given)

    return cast(F, with_change)


def one_line(option: str, text: str) -> str:
    """Return what an option says, without blanks around it; a usage error for a text that nobody can read."""
    if not text.strip() or CONTROL.search(text):
        raise click.UsageError(f"{option} takes one line, without control characters, not {text!r}")
    return text.strip()


def print_facts(as_json: bool, value: Any, lines: Iterable[str]) -> None:
    """Print a value as one line of JSON, or as lines for a person."""
    for line in [json_line(value)] if as_json else lines:
        click.echo(line)


def user_name() -> str | None:
    """Return the name of who runs this; None where the system knows none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return None


def named_servers(bootstrap: str | None, settings: Settings) -> str:
    """Return the address of a cluster that an option or the settings name; a usage error where neither does."""
    if servers := bootstrap or settings.kafka_bootstrap_servers:
        return servers
    raise click.UsageError(
        "name a cluster with --bootstrap or KAFKA_BOOTSTRAP_SERVERS (`fraud-pipeline broker` starts one)"
    )


def cluster(bootstrap: str | None, *, or_registry: bool = False) -> tuple[str, Settings]:
    """Return a cluster's address and the settings.

    Args:
        bootstrap: Address of the cluster; None for that of the settings.
        or_registry: Whether the command has `registry_option` too, which its error then names.

    Raises:
        ClusterNotFound: None is named, or none answers.
    """
    settings = Settings()
    if bootstrap is not None:
        settings = settings.model_copy(update={"kafka_bootstrap_servers": bootstrap})
    try:
        return find_cluster(settings), settings
    except ClusterNotFound as error:
        if not or_registry:
            raise
        raise ClusterNotFound(f"{error} Versions of the local registry need none: give --registry.") from error
