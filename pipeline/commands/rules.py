"""``fraud-pipeline rules``: rules in files, and the set of them that is active."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import click
from msgspec.structs import replace

from pipeline.commands.shared_options import Cluster, bootstrap_option, change_options, cluster
from pipeline.decision.rules import FILE_SUFFIX, Rule, RuleSet, condition_of
from pipeline.expressions.trees import lines_of
from pipeline.models.changes import ChangeAuthor
from pipeline.models.rule_changes import RuleChange, RuleChanges, applied, differences, no_rule
from pipeline.observability.terminal import printable
from pipeline.settings import Settings
from pipeline.settings.rule_files import CAPS, RuleFile, RuleFileError, missing_lines, read_directory, read_rule
from schemas.times import utc_text

_HEADER: Final = ("owner", "reason", "severity", "action")
_directory = click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
_rule = click.argument("rule")


@click.group()
def command() -> None:
    """Check rules in files, and bring them from draft to active."""


@command.command()
@click.argument("path", type=click.Path(exists=True, path_type=Path))
def check(path: Path) -> None:
    """Say whether the rules of PATH, a directory or a file, can be used, and which features they lack.

    FRAUD_PIPELINE_FEATURES_FILE names what is declared.
    """
    files = read_directory(path) if path.is_dir() else [read_rule(path)]
    if missing := sorted({name for file in files for name in file.missing}):
        click.echo("\n".join(missing_lines(missing)))
        raise click.ClickException(f"{', '.join(missing)} must be declared: add these lines to features.toml")
    RuleSet(file.rule for file in files)
    click.echo(printable(f"Can be used: {', '.join(file.rule.code for file in files)}."))


@command.command("list")
@bootstrap_option
def list_rules(bootstrap: str | None) -> None:
    """List the rules of the active set: code, state, action, severity and owner."""
    rules = RuleChanges.on(*cluster(bootstrap), fence=False).rules
    for rule in rules.rules:
        click.echo(printable(f"{rule.code}  {rule.state}  {rule.action}  {rule.severity}  {rule.owner}"))
    if rules.version:
        _now_active(rules)
    else:
        click.echo("No set of rules is active: `fraud-pipeline rules apply DIRECTORY` makes one.", err=True)


@command.command()
@click.argument("code")
@bootstrap_option
def show(code: str, bootstrap: str | None) -> None:
    """Show the versions of rule CODE that are in the active set, and its history."""
    changes = RuleChanges.on(*cluster(bootstrap), fence=False)
    versions, history = [rule for rule in changes.rules.rules if rule.code == code], [*changes.history(code)]
    if not versions and not history:
        raise click.ClickException(no_rule(code, changes.rules))
    for rule in versions:
        click.echo("\n".join(_lines(rule)))
    for activation, change in history:
        steps = f"{change['before'] or 'new'} -> {change['after']}"
        text = f"{utc_text(activation.activated_at)}  {steps}  by {activation.by}: {activation.reason}"
        click.echo(printable(text))


@command.command()
@_directory
@bootstrap_option
def diff(directory: Path, bootstrap: str | None) -> None:
    """Show what `apply` would change, and which rules of the active set DIRECTORY does not have."""
    _show_difference(RuleChanges.on(*cluster(bootstrap), fence=False).rules, _usable(read_directory(directory)))


@command.command()
@_directory
@click.option("--yes", is_flag=True, help="Do not ask.")
@change_options
def apply(directory: Path, yes: bool, change: ChangeAuthor, at: Cluster) -> None:
    """Make what is new in the files of DIRECTORY drafts; show the difference first.

    Nothing acts or is counted yet, and what is active stays so.
    """
    files, changes = _usable(read_directory(directory)), RuleChanges.on(*at())
    if not _show_difference(changes.rules, files):
        return
    if not yes:
        click.confirm("Apply?", abort=True)
    _now_active(changes.apply(files, change))


@command.command()
@_rule
@change_options
def publish(rule: str, change: ChangeAuthor, at: Cluster) -> None:
    """Put RULE in shadow, a draft of this code or a file: it is counted and stands on decisions, and raises nothing."""
    given = _usable([read_rule(Path(rule))])[0] if rule.endswith(FILE_SUFFIX) else rule
    _now_active(RuleChanges.on(*at()).publish(given, change))


@command.command()
@_rule
@change_options
def activate(rule: str, change: ChangeAuthor, at: Cluster) -> None:
    """Make RULE, a code in shadow, active, in place of the version that was; or one that was stopped.

    With FRAUD_PIPELINE_SECOND_APPROVAL set, somebody else than who has put it in shadow.
    """
    _now_active(RuleChanges.on(*at()).activate(rule, change))


@command.command()
@_rule
@change_options
def retire(rule: str, change: ChangeAuthor, at: Cluster) -> None:
    """Take RULE out of the active set, whatever its state."""
    _now_active(RuleChanges.on(*at()).retire(rule, change))


@command.command()
@change_options
def adopt(change: ChangeAuthor, at: Cluster) -> None:
    """Move the rules of the active policy, of an earlier release, to the set; they stay active."""
    _now_active(RuleChanges.on(*at()).adopt(change))


def _now_active(rules: RuleSet) -> None:
    click.echo(f"Set {rules.version} is active (rules: {len(rules.rules)}, active: {rules.active}).")


def _usable(files: Iterable[RuleFile]) -> list[Rule]:
    """Return the rules of files, with the settings' caps; raises `RuleFileError` for one that cannot be used."""
    files, settings = list(files), Settings()
    if missing := sorted({name for file in files for name in file.missing}):
        raise RuleFileError(f"{', '.join(missing)} must be declared first: see `fraud-pipeline rules check`")
    caps = settings.rule_max_alerts_per_hour, settings.rule_max_hit_rate
    return [
        replace(
            rule, max_alerts_per_hour=rule.max_alerts_per_hour or caps[0], max_hit_rate=rule.max_hit_rate or caps[1]
        )
        for rule in (file.rule for file in files)
    ]


def _show_difference(rules: RuleSet, files: list[Rule]) -> bool:
    """Print what applying files changes; return whether anything does."""
    changes = differences(rules, applied(rules, files))
    for change in changes:
        click.echo("\n".join(_change_lines(rules, change)))
    if others := sorted({rule.code for rule in rules.rules} - {rule.code for rule in files}):
        click.echo(printable(f"Only in the active set: {', '.join(others)}. `rules retire` takes one out."))
    if not changes:
        click.echo("The active set has these rules already.")
    return bool(changes)


def _change_lines(rules: RuleSet, change: RuleChange) -> Iterator[str]:
    code, before, after = change
    before = before or rules.find(code, active=True)
    if after is None:
        yield printable(f"{code}: the {before.state if before else ''} version goes")
        return
    yield printable(f"{code}: {'new' if before is None else f'differs from the {before.state} version'}, a draft")
    old, new = ([] if rule is None else list(_lines(rule))[1:] for rule in (before, after))
    yield from (f"  - {line}" for line in old if line not in new)
    yield from (f"  + {line}" for line in new if line not in old)


def _lines(rule: Rule) -> Iterator[str]:
    yield printable(f"{rule.code} ({rule.state})")
    header = {name: getattr(rule, name.replace("-", "_")) for name in (*_HEADER, *CAPS)}
    yield from (printable(f"  {name}: {value}") for name, value in header.items() if value is not None)
    yield from (printable(f"  {line}") for line in lines_of(condition_of(rule)))
