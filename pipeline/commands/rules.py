"""``fraud-pipeline rules``: rules in files, and the set of them that is active."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from pipeline.broker.running import ClusterNotFound
from pipeline.commands.option_types import Moment
from pipeline.commands.rule_figures import figure_lines, worth_lines
from pipeline.commands.shared_options import (
    Cluster,
    F,
    bootstrap_option,
    change_options,
    cluster,
    json_option,
    one_line,
    print_facts,
    user_name,
)
from pipeline.decision.rules import FILE_SUFFIX, SCORES, Rule, RuleSet, condition_of
from pipeline.expressions.trees import doubts_about, lines_of
from pipeline.kafka.cluster.errors import TopicError
from pipeline.models.changes import ChangeAuthor
from pipeline.models.list_log import LEAKS, ListTime
from pipeline.models.publish import changed
from pipeline.models.rule_changes import (
    TESTED_DAYS,
    RuleChange,
    RuleChanges,
    applied,
    differences,
    no_rule,
    refuse_dropped,
)
from pipeline.observability.terminal import printable
from pipeline.settings import Settings
from pipeline.settings.rule_files import CAPS, missing_lines, read_directory, read_rule, usable_rules
from schemas.times import SECONDS_PER_DAY, utc_text

if TYPE_CHECKING:
    from pipeline.rules.hits import Counted, HitHistory
    from pipeline.rules.trial import Figures

_HEADER: Final = ("owner", "reason", "severity", "action")
_directory = click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
_rule = click.argument("rule")
_from = click.option("--from", "start", type=Moment(), help="First day (UTC).")
_lists = click.option(
    "--lists",
    type=click.Choice([time.value for time in ListTime]),
    default=ListTime.THEN.value,
    show_default=True,
    help="Lists as each decision had them, or as they are: what was listed since then leaks into the figures.",
)
_to = click.option("--to", "end", type=Moment(), help="Day to end before (UTC).")


def _history(*, required: bool = False) -> Callable[[F], F]:
    """Return the options that name a history."""
    text = "Directory of exported topics, a file of transactions, or `topics` for those of the cluster."
    on = click.option("--on", "history", metavar="HISTORY", required=required, help=text)
    mapping = click.option(
        "--mapping",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Read a file HISTORY by this mapping.  [default: by the names of its columns]",
    )
    return lambda command: on(mapping(command))


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
    for file in files:
        for doubt in dict.fromkeys(doubts_about(condition_of(file.rule), SCORES)):
            click.echo(printable(f"Look at {file.rule.code}: {doubt}."))
    click.echo(printable(f"Can be used: {', '.join(file.rule.code for file in files)}."))


@command.command("test")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_history(required=True)
@_from
@_to
@_lists
@bootstrap_option
@click.option("--by", help="Who tests it.  [default: your user name]")
def try_file(
    file: Path,
    history: str,
    mapping: Path | None,
    start: datetime | None,
    end: datetime | None,
    lists: str,
    bootstrap: str | None,
    by: str | None,
) -> None:
    """Show what the rule of FILE would have hit in a history, without its newest 14 days.

    Each test is recorded on the cluster, where one can be reached.
    """
    settings = Settings()
    (rule,) = usable_rules([read_rule(file)], settings)
    tester = one_line("--by", (user_name() or "unknown") if by is None else by)
    refuse_dropped([rule], settings)
    today, days = lists == ListTime.TODAY.value, _days(start, end)
    figures = _figures(rule, history, mapping, settings, bootstrap, lists_of_today=today, **days)
    click.echo("\n".join(figure_lines(rule.code, figures)))
    try:
        changes = RuleChanges.on(*cluster(bootstrap))
    except ClusterNotFound:
        click.echo("Not recorded: no cluster is named, or none answers.")
        return
    except TopicError as error:
        click.echo(printable(f"Not recorded: {error}."))
        return
    _record(changes, rule, history, figures, tester)


@command.command()
@_history(required=True)
@_from
@_to
@bootstrap_option
@json_option
def report(
    history: str,
    mapping: Path | None,
    start: datetime | None,
    end: datetime | None,
    bootstrap: str | None,
    as_json: bool,
) -> None:
    """Show what each rule of the active set is worth in a history, and name those that earn nothing."""
    from pipeline.rules.set_report import SetReport

    days, changes = _days(start, end), RuleChanges.on(*cluster(bootstrap))
    counted = SetReport(changes.rules)
    since = {key: moment.isoformat(timespec="seconds") for key, moment in changes.since().items()}
    found = _counted(counted, history, mapping, Settings(), bootstrap)
    if found.leaks:
        click.echo(LEAKS, err=True)
    worth = counted.worth(found, since, **days)
    print_facts(as_json, msgspec.to_builtins(worth), worth_lines(worth, datetime.now(UTC)))


@command.command("list")
@bootstrap_option
def list_rules(bootstrap: str | None) -> None:
    """List the rules of the active set: code, state, action, severity and owner."""
    rules = RuleChanges.on(*cluster(bootstrap)).rules
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
    changes = RuleChanges.on(*cluster(bootstrap))
    versions, history = [rule for rule in changes.rules.rules if rule.code == code], [*changes.history(code)]
    if not versions and not history:
        raise click.ClickException(no_rule(code, changes.rules))
    for rule in versions:
        click.echo("\n".join(_lines(rule)))
    for activation, change in history:
        steps = f"{change.before or 'new'} -> {change.after}"
        tested = "" if change.tested else ", untested"
        looks = f", looks at the newest days: {change.looks}" if change.looks else ""
        counted = change.after == "active" and change.tests is not None
        tests = f" (tests: {change.tests}{looks}{tested})" if counted else ""
        text = f"{utc_text(activation.activated_at)}  {steps}{tests}  by {activation.by}: {activation.reason}"
        click.echo(printable(text))


@command.command()
@_directory
@bootstrap_option
def diff(directory: Path, bootstrap: str | None) -> None:
    """Show what `apply` would change, and which rules of the active set DIRECTORY does not have."""
    files = usable_rules(read_directory(directory), Settings())
    click.echo("\n".join(_difference(RuleChanges.on(*cluster(bootstrap)).rules, files)))


@command.command()
@_directory
@click.option("--yes", is_flag=True, help="Do not ask.")
@change_options
def apply(directory: Path, yes: bool, change: ChangeAuthor, at: Cluster) -> None:
    """Make what is new in the files of DIRECTORY drafts; show the difference first.

    Nothing acts or is counted yet, and what is active stays so.
    """
    files, seen = usable_rules(read_directory(directory), Settings()), list[str]()

    def applied_once_seen(changes: RuleChanges) -> RuleSet | None:
        nothing = not differences(changes.rules, applied(changes.rules, files))
        if (lines := _difference(changes.rules, files)) != seen:
            click.echo("\n".join(lines))
            seen[:] = lines
            if not (nothing or yes):
                click.confirm("Apply?", abort=True)
        return None if nothing else changes.apply(files, change)

    if after := changed(RuleChanges.on, *at(), applied_once_seen):
        _now_active(after)


@command.command()
@_rule
@_history()
@change_options
def publish(rule: str, history: str | None, mapping: Path | None, change: ChangeAuthor, at: Cluster) -> None:
    """Put RULE in shadow, a draft of this code or a file: it is counted and stands on decisions, and raises nothing.

    With --on, show then what it would have hit in the newest 14 days of a history, which `test` leaves out. Each look
    is recorded.
    """
    given = usable_rules([read_rule(Path(rule))], Settings())[0] if rule.lower().endswith(FILE_SUFFIX) else rule
    bootstrap, settings = at()
    found, figures = given if isinstance(given, Rule) else None, None
    if history:
        found = found or RuleChanges.on(bootstrap, settings).rules.find(rule, active=False)
        # What cannot be read is not published, and what is not published is not shown.
        figures = found and _figures(found, history, mapping, settings, bootstrap, held_out=True)
    changes, rules = changed(
        RuleChanges.on, bootstrap, settings, lambda changes: (changes, changes.publish(given, change))
    )
    _now_active(rules)
    if history and found and figures:
        _record(changes, found, history, figures, change.by, held_out=True)
        click.echo("\n".join(figure_lines(found.code, figures)))


@command.command()
@_rule
@click.option("--untested", is_flag=True, help="Also if it was not tested on 7 days of history.")
@change_options
def activate(rule: str, untested: bool, change: ChangeAuthor, at: Cluster) -> None:
    """Make RULE, a code in shadow, active, in place of the version that was; or one that was stopped.

    With FRAUD_PIPELINE_SECOND_APPROVAL set, somebody else than who has put it in shadow.
    """
    changes, rules = changed(
        RuleChanges.on, *at(), lambda changes: (changes, changes.activate(rule, change, untested=untested))
    )
    if (found := rules.find(rule, active=True)) and not changes.is_tested(found):
        click.echo(printable(f"{rule} is untested: it was not tried on {TESTED_DAYS} days of history."))
    _now_active(rules)


@command.command()
@_rule
@change_options
def retire(rule: str, change: ChangeAuthor, at: Cluster) -> None:
    """Take RULE out of the active set, whatever its state."""
    _now_active(changed(RuleChanges.on, *at(), lambda changes: changes.retire(rule, change)))


@command.command()
@change_options
def adopt(change: ChangeAuthor, at: Cluster) -> None:
    """Move the rules of the active policy, of an earlier release, to the set; they stay active."""
    _now_active(changed(RuleChanges.on, *at(), lambda changes: changes.adopt(change)))


def _figures(
    rule: Rule,
    history: str,
    mapping: Path | None,
    settings: Settings,
    bootstrap: str | None,
    *,
    lists_of_today: bool = False,
    **chosen: Any,
) -> "Figures":
    """Return the figures of a rule on a history."""
    from pipeline.rules.trial import Trial

    trial = Trial(rule)
    found = _counted(trial, history, mapping, settings, bootstrap, lists_of_today=lists_of_today)
    return trial.figures(found, **chosen)


def _counted(
    counted: "Counted",
    history: str,
    mapping: Path | None,
    settings: Settings,
    bootstrap: str | None,
    *,
    lists_of_today: bool = False,
) -> "HitHistory":
    """Let rules count a history, and report on the standard error what no figure has."""
    # What reads a history is loaded where one is read.
    from pipeline.commands.file_mapping import file_mapping
    from pipeline.rules.histories import read_history

    if mapping is not None and not Path(history).is_file():
        raise click.UsageError("--mapping is for a file; topics and exports follow FRAUD_PIPELINE_MAPPING_FILE")
    found = None if mapping is None else file_mapping(Path(history), mapping, settings)
    read = read_history(
        counted, history, settings, lambda: cluster(bootstrap)[0], lists_of_today=lists_of_today, mapping=found
    )
    if read.left_out:
        click.echo(printable(read.left_out), err=True)
    return read


def _record(
    changes: RuleChanges, rule: Rule, history: str, figures: "Figures", by: str, *, held_out: bool = False
) -> None:
    source = f"{history}, lists of today" if figures.leaks else history
    changes.record_test(rule, figures.filled_days, source, by, held_out=held_out)
    number = len(changes.tests(rule, held_out=held_out)) + 1
    what = f"look {number} at the newest days" if held_out else f"test {number}"
    click.echo(printable(f"Recorded as {what} of {rule.code}."))


def _days(start: datetime | None, end: datetime | None) -> dict[str, int | None]:
    """Return the days of `--from` and `--to` since 1970; a usage error where there is none between them."""
    first, last = (None if time is None else int(time.timestamp() // SECONDS_PER_DAY) for time in (start, end))
    if first is not None and last is not None and first >= last:
        raise click.UsageError("there is no day from --from to before --to: give --to a later one")
    return {"first": first, "end": last}


def _now_active(rules: RuleSet) -> None:
    click.echo(f"Set {rules.version} is active (rules: {len(rules.rules)}, active: {rules.active}).")


def _difference(rules: RuleSet, files: list[Rule]) -> list[str]:
    """Return what applying files changes, in lines."""
    changes = differences(rules, applied(rules, files))
    lines = [line for change in changes for line in _change_lines(rules, change)]
    if others := sorted({rule.code for rule in rules.rules} - {rule.code for rule in files}):
        lines.append(printable(f"Only in the active set: {', '.join(others)}. `rules retire` takes one out."))
    return lines if changes else [*lines, "The active set has these rules already."]


def _change_lines(rules: RuleSet, change: RuleChange) -> Iterator[str]:
    code, before, after = change
    before = before or rules.find(code, active=True)
    if after is None:
        yield printable(f"{code}: the {before.state if before else ''} version goes")
        return
    yield printable(f"{code}: {'new' if before is None else f'differs from the {before.state} version'}, a draft")
    old, new = ([] if rule is None else list(_lines(rule))[1:] for rule in (before, after))
    yield from (f"  -{line[1:]}" for line in old if line not in new)
    yield from (f"  +{line[1:]}" for line in new if line not in old)


def _lines(rule: Rule) -> Iterator[str]:
    yield printable(f"{rule.code} ({rule.state})")
    header = {name: getattr(rule, name.replace("-", "_")) for name in (*_HEADER, *CAPS)}
    yield from (printable(f"  {name}: {value}") for name, value in header.items() if value is not None)
    yield from (printable(f"  {line}") for line in lines_of(condition_of(rule)))
