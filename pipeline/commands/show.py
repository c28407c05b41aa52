"""``fraud-pipeline show``: what was decided about a transaction or a card, why, and what is known of it."""

from collections.abc import Iterator, Sequence
from functools import partial

import click

from pipeline.broker.running import cluster_or_last_run
from pipeline.commands.lookup import find, find_labels, named
from pipeline.demo.text import alert_lines, fact_lines, money_text, wrapped
from pipeline.observability.logs import silence_clients
from pipeline.observability.terminal import printable
from pipeline.settings import Settings
from schemas.messages import Alert, Decision, Label
from schemas.times import utc_text
from schemas.topics import ALERTS, DECISIONS


def decision_lines(decision: Decision, alert: Alert | None, labels: Sequence[Label]) -> Iterator[str]:
    """Yield a decision in words: as its alert where there is one, then what labels, the oldest first, say of it."""
    if alert is not None:
        yield from (line.plain for line in alert_lines(alert))
    else:
        yield (
            f"{utc_text(decision.event_time)}  {money_text(decision.amount, decision.currency)}  "
            f"score {decision.score:.3f}  {printable(decision.action)}"
        )
        names = {"card": decision.card_id, "merchant": decision.merchant_id, "transaction": decision.transaction_id}
        yield from fact_lines([f"{name} {printable(value)}" for name, value in names.items()])
    yield from wrapped(f"- {_why(decision, alert)}", "  ", "    ")
    if not labels:
        yield "  No label."
    for label in labels:
        yield from wrapped(f"Label: {label_text(label)}", "  ", "    ")


def label_text(label: Label) -> str:
    """Return who says what of a transaction, when and with which note."""
    by = f"{printable(label.source)} {printable(label.analyst)}" if label.analyst else printable(label.source)
    kind = f" ({printable(label.fraud_type)})" if label.fraud_type else ""
    note = f": {printable(label.note)}" if label.note else ""
    return f"{printable(label.label)}{kind}, says {by}, {utc_text(label.labelled_at)}{note}"


def _why(decision: Decision, alert: Alert | None) -> str:
    side = "below" if decision.score < decision.threshold else "not below"
    text = f"The score is {side} the threshold of {decision.threshold:.3f}"
    if decision.action != "alert":
        return f"{text}, and neither a rule nor an audit chose it."
    return f"{text}." if alert is not None else f"{text}; the alert with its reasons is no longer on its topic."


@click.command()
@click.argument("identifier", metavar="TRANSACTION|CARD", callback=named)
def command(identifier: str) -> None:
    """Show what was decided about TRANSACTION, or about every transaction of CARD, by event time.

    An alert is shown with its reasons, any other decision with its score beside the threshold. Labels and notes follow.
    """
    settings = Settings()
    silence_clients()
    with cluster_or_last_run(settings, partial(click.echo, err=True)) as bootstrap:
        decisions = find(bootstrap, settings, [DECISIONS], identifier, Decision)
        raised = {alert.source: alert for alert in find(bootstrap, settings, [ALERTS], identifier, Alert)}
        labels = find_labels(bootstrap, settings, identifier)
    if not decisions:
        raise click.ClickException(
            f"No decision about a transaction or card {printable(identifier)}. Check the identifier (and "
            "FRAUD_PIPELINE_TOPIC_PREFIX), look for a refused record with `fraud-pipeline dead-letters list`, or, if "
            "it still waits for its decision, read on /readyz or in the worker's log for what."
        )
    for decision in sorted(decisions, key=lambda decision: decision.event_time):
        of_it = [label for label in labels if label.transaction_id == decision.transaction_id]
        for line in [*decision_lines(decision, raised.get(decision.source), of_it), ""]:
            click.echo(line)
