"""The report as a summary for the terminal, of at most 80 columns."""

from io import StringIO
from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.backtest.report.content import ReportContent, VariantContent
from pipeline.backtest.report.wording import (
    between,
    drift_sentence,
    figure,
    idle_rules_sentence,
    moment,
    number,
    overruled_sentence,
    pacing_sentence,
    partial_sentence,
    percent,
    ratio,
    trainings_sentence,
    with_raised,
)
from pipeline.backtest.runner.input_quality import refused_text

COLUMNS: Final = 80
_SHOWN: Final = (
    "auc_roc", "average_precision", "card_precision_at_k", "precision_at_k", "recall_at_k", "alerts_per_day",
    "cases_per_day", "alert_precision", "alert_recall", "caught_amount", "missed_amount", "caught_share", "review_cost",
    "net_saving",
)  # fmt: skip
_MISSES: Final = 5


def summary(content: ReportContent) -> str:
    """Plain text, of lines of at most `COLUMNS` characters."""
    content, out = with_raised(content), StringIO()
    console = Console(file=out, width=COLUMNS, color_system=None, force_terminal=False, highlight=False, emoji=False)
    if content.partial:
        console.print(Text(partial_sentence(content)))
    for warning in content.warnings:
        console.print(Text(f"Warning: {warning}"))
    console.print(
        Text(
            f"{number(content.transactions)} transactions of {number(content.cards)} cards, "
            f"{moment(content.from_time)} to {moment(content.until_time)}; amounts in {content.base_currency}, "
            "times in UTC"
        )
    )
    if text := refused_text(content.counts):
        console.print(Text(text))
    for variant in content.variants:
        _print_variant(console, variant, content)
    for comparison in content.comparisons:
        console.print(
            Text(
                f"{comparison.other} beside {comparison.base}: {number(comparison.only_other.alerts)} alerts of its "
                f"own ({number(comparison.only_other.frauds)} about known fraud), "
                f"{number(comparison.only_base.alerts)} no longer ({number(comparison.only_base.frauds)}); it catches "
                f"{number(comparison.only_other.caught_amount)} more and misses "
                f"{number(comparison.only_base.caught_amount)} that {comparison.base} catches."
            )
        )
    for variant in content.variants:
        if variant.misses:
            grid = _grid(f"Costliest misses of {variant.name}", ["transaction", "time", "amount"])
            for row in variant.misses[:_MISSES]:
                grid.add_row(Text(row.transaction_id), moment(row.event_time), number(row.amount, 2))
            console.print(grid)
    for drift in content.drift:
        console.print(Text(drift_sentence(drift)))
    for statement in content.labels.statements:
        console.print(Text(statement))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).rstrip("\n") + "\n"


def _print_variant(console: Console, variant: VariantContent, content: ReportContent) -> None:
    """Print the metrics of a variant, and what is known of its alerts."""
    level = f"{content.options.level:.0%}"
    grid = _grid(variant.name, ["metric", "value", f"{level}, days", f"{level}, cards"])
    for metric in variant.metrics:
        if metric.name in _SHOWN:
            by_days, by_cards = between(metric.by_days, metric), between(metric.by_cards, metric)
            grid.add_row(Text(metric.title), figure(metric), by_days, by_cards)
    console.print(grid)
    if content.labels.unlabelled:
        precision, recall = variant.precision_bounds, variant.recall_bounds
        console.print(
            Text(
                f"Of the alerts {percent(variant.alerts_labelled)} have a label, of other transactions "
                f"{percent(variant.others_labelled)}. Those without could put precision of alerts between "
                f"{ratio(precision.least)} and {ratio(precision.most)}, recall between {ratio(recall.least)} and "
                f"{ratio(recall.most)}."
            )
        )
    if variant.paced is not None:
        console.print(Text(pacing_sentence(variant.paced)))
    for text in (trainings_sentence(variant), idle_rules_sentence(variant), overruled_sentence(variant)):
        if text:
            console.print(Text(text))
    if variant.reviewed is not None:
        console.print(
            Text(
                f"Of {number(variant.reviewed.alerts)} alerts that were looked at, "
                f"{number(variant.reviewed.sooner)} were answered before a report; about "
                f"{number(variant.reviewed.unanswered)} nobody knows the truth."
            )
        )


def _grid(title: str, columns: list[str]) -> Table:
    grid = Table(title=Text(title), title_justify="left", box=box.SIMPLE, pad_edge=False)
    for at, name in enumerate(columns):
        grid.add_column(name, justify="left" if at == 0 else "right", overflow="fold")
    return grid
