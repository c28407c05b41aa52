"""``fraud-pipeline acl``: what each role may do on a secured cluster, as a table, as commands, or made."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import click

from agents.permissions import Grant, roles
from pipeline.broker.running import find_cluster
from pipeline.kafka.cluster.acl import AclRule, create_rules
from pipeline.settings import Settings

_FLAGS: Final = {"topic": "--topic", "group": "--group", "transactional_id": "--transactional-id"}


@click.command()
@click.option(
    "--principal",
    "principals",
    multiple=True,
    metavar="ROLE=PRINCIPAL",
    help="Give a role to a principal, such as producer=User:core-banking. May be repeated.",
)
@click.option("--apply", "makes", is_flag=True, help="Create the access rules, instead of printing commands.")
def command(*, principals: tuple[str, ...], makes: bool) -> None:
    """Show what each role may do: on which topics, groups and transactional ids.

    With --principal, print the kafka-acls commands that give the roles to their principals, or create the rules by
    --apply. Rules follow the settings: FRAUD_PIPELINE_TOPIC_PREFIX, FRAUD_PIPELINE_LABEL_TOPICS and
    FRAUD_PIPELINE_AGENTS.
    """
    if makes and not principals:
        raise click.UsageError("name a principal for each role: --principal producer=User:core-banking")
    settings = Settings()
    granted = roles(settings)
    rules = [rule for text in principals for rule in _rules(text, granted)]
    if makes:
        created = create_rules(find_cluster(settings), settings, rules)
        click.echo(f"{created} access rules created, {len(rules) - created} were there already")
        return
    for line in map(_command, rules) if principals else _table(granted):
        click.echo(line)


def _rules(text: str, granted: Mapping[str, Sequence[Grant]]) -> Iterator[AclRule]:
    role, _, principal = text.partition("=")
    kind, _, name = principal.partition(":")
    if role not in granted or not kind or not name:
        raise click.BadParameter(
            f"{text!r} is no ROLE=PRINCIPAL; roles are {', '.join(granted)}, principals look like User:core-banking",
            param_hint="--principal",
        )
    for grant in granted[role]:
        for operation in grant.operations:
            yield AclRule(principal, grant.resource, grant.name, operation, grant.prefixed)


def _command(rule: AclRule) -> str:
    resource = [_FLAGS[rule.resource], rule.name] if rule.resource in _FLAGS else ["--cluster"]
    if rule.prefixed:
        resource += ["--resource-pattern-type", "prefixed"]
    operation = "".join(word.capitalize() for word in rule.operation.split("_"))
    options = ["--add", "--allow-principal", rule.principal, "--operation", operation, *resource]
    return f'kafka-acls --bootstrap-server "$KAFKA_BOOTSTRAP_SERVERS" {shlex.join(options)}'


def _table(granted: Mapping[str, Sequence[Grant]]) -> Iterator[str]:
    rows = [("role", "resource", "name", "operations")]
    rows += [
        (role, grant.resource, grant.name + "*" * grant.prefixed, ", ".join(grant.operations))
        for role, grants in granted.items()
        for grant in grants
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        yield "  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[-1]])
