"""What a run says: lines for people, and the parts of the JSON file."""

from collections.abc import Sequence
from typing import Any

import click

from tests.evaluation.champion import Champion
from tests.evaluation.checks import Check
from tests.evaluation.stream import StreamReport


def model_figures(model: Champion, training_s: float) -> dict[str, Any]:
    """Which versions were evaluated, and how they did when they were trained."""
    return {
        "lightgbm": model.lightgbm,
        "policy": model.policy,
        "training_s": round(training_s, 1),
        "periods": model.details["periods"],
        "validation_metrics": model.details["metrics"],
    }


def throughput(report: StreamReport) -> dict[str, Any]:
    """Rates over the whole run, and the processor time of each process."""
    return {
        "transactions": report.transactions,
        "labels": report.labels,
        "sent_s": round(report.sent_s, 2),
        "decided_s": round(report.decided_s, 2),
        "transactions_per_s": round(report.transactions / report.decided_s, 1),
        "cpu_s": report.cpu_s,
        "cpu_us_per_transaction": {
            name: round(used / report.transactions * 1e6, 1) for name, used in report.cpu_s.items()
        },
        "feedback_lag_at_last_decision": report.feedback_lag,
    }


def say(text: str) -> None:
    """Begin a step."""
    click.echo(f"==> {text}")


def say_rates(report: StreamReport) -> None:
    """How fast it went."""
    figures = throughput(report)
    click.echo(
        f"  {report.transactions:,} transactions and {report.labels:,} labels in {report.decided_s:.1f} s, from the "
        f"first sent to the last decision committed: {figures['transactions_per_s']:,.0f} transactions/s"
    )
    cpu = ", ".join(f"{name} {used:.1f} us" for name, used in figures["cpu_us_per_transaction"].items())
    click.echo(f"  processor time a transaction: {cpu}; the feedback agent is {report.feedback_lag:,} records behind")


def say_figures(figures: dict[str, Any], outcomes: Sequence[Check]) -> None:
    """Latency, detection, and the outcome of each check."""
    latency = ", ".join(f"{name} {value:g}" for name, value in figures["ingested_to_decided_ms"].items())
    click.echo(f"  from the card agent's batch to the decision, ms: {latency}")
    for period, measured in (figures["detection"] or {}).items():
        click.echo(f"\n{period}: {measured['transactions']:,} transactions, {measured['frauds']:,} frauds")
        for name in ("lightgbm", "blend"):
            values = ", ".join(f"{what} {_number(value)}" for what, value in measured[name].items())
            click.echo(f"  {name:8}  {values}")
        click.echo(
            f"  alerts    {measured['alerts_per_day']:.1f} a day, precision {_number(measured['alert_precision'])}, "
            f"recall {_number(measured['alert_recall'])}"
        )
    click.echo()
    for check in outcomes:
        compared = ", ".join(f"{name} {_number(value)}" for name, value in check.figures.items())
        click.echo(f"[{'ok' if check.passed else 'FAILED'}] {check.name} ({compared})")
        for problem in check.problems:
            click.echo(f"         {problem}")


def _number(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else "-" if value is None else str(value)
