"""Figures of a rule on history, as lines for a person."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from pipeline.models.list_log import LEAKS
from pipeline.observability.terminal import printable
from schemas.times import US_PER_DAY, moment

if TYPE_CHECKING:
    from pipeline.backtest.metrics.bootstrap import Estimate
    from pipeline.backtest.metrics.rule_worth import RuleWorth
    from pipeline.rules.trial import Figures, HistoryExample


def figure_lines(code: str, figures: "Figures") -> Iterator[str]:
    """Yield what a rule would have done."""
    first, last = (moment((figures.first_day + days) * US_PER_DAY)[:10] for days in (0, figures.days - 1))
    filled = "" if figures.filled_days == figures.days else f" ({figures.filled_days} with transactions)"
    days = f"{figures.days} days{filled}"
    yield printable(f"{code} from {first} to {last}: {days}, {figures.transactions:,} transactions")
    yield f"  hits: {figures.hits:,}, {_estimate(figures.hits_a_day)} a day"
    yield f"  unknown (NULL): {figures.null / figures.transactions:.2%} of the transactions"
    yield from _not_computed(figures.not_computed)
    silent = figures.mature - figures.frauds - figures.legitimate
    yield (
        f"  mature hits: {figures.mature:,}, of which {figures.frauds:,} fraud, {figures.legitimate:,} legitimate, "
        f"{silent:,} without a label"
    )
    yield f"  precision: {_estimate(figures.precision, share=True)}"
    yield f"  money of frauds: {figures.fraud_money:,.2f}, {_estimate(figures.fraud_money_a_day)} a day"
    new_a_day = _estimate(figures.new_a_day)
    yield f"  without an alert then: {figures.new:,}, {new_a_day} a day, of {figures.new_cards:,} cards"
    yield (
        f"    of {figures.new_mature:,} mature ones, {figures.new_frauds:,} are fraud, "
        f"{figures.new_fraud_money:,.2f} in money"
    )
    yield from _counts("alerted then by", figures.selected)
    yield from _counts("hit by other rules", figures.other_rules)
    yield from _counts("would hit but for", figures.near_misses)
    yield from _examples(figures.examples)
    if figures.leaks:
        yield f"  {LEAKS}"


def _not_computed(transactions: int) -> Iterator[str]:
    if transactions:
        yield f"  not computed: {transactions:,} transactions, from before a feature was declared"


def _estimate(estimate: "Estimate | None", *, share: bool = False) -> str:
    if estimate is None:
        return "unknown"
    if share:
        return f"{estimate.value:.1%} [{estimate.low:.1%}, {estimate.high:.1%}]"
    return f"{estimate.value:,.2f} [{estimate.low:,.2f}, {estimate.high:,.2f}]"


def _counts(title: str, counts: dict[str, int]) -> Iterator[str]:
    if counts:
        yield printable(f"  {title}: {', '.join(f'{name} {count:,}' for name, count in counts.items())}")


def _examples(examples: "Iterable[HistoryExample]") -> Iterator[str]:
    titles: set[str] = set()
    for example in examples:
        if example.fails not in titles:
            titles.add(example.fails)
            yield printable(f"  near misses, where {example.fails} fails:" if example.fails else "  newest hits:")
        values = ", ".join(f"{name} {_value(value)}" for name, value in example.values.items())
        yield printable(f"    {moment(example.event_time_us)}  {example.transaction_id}  {values}")


def _value(value: str | float | None) -> str:
    return "NULL" if value is None else value if isinstance(value, str) else f"{value:g}"


def worth_lines(worth: "Sequence[RuleWorth]", now: datetime) -> Iterator[str]:
    """Yield what each rule is worth, and which earn nothing."""
    for rule in worth:
        age = "" if rule.since is None else f" for {(now - datetime.fromisoformat(rule.since)).days} days"
        yield printable(f"{rule.code}  {rule.state}{age}  {rule.action}  {rule.owner}")
        yield (
            f"  hits: {rule.hits:,}, of {rule.mature:,} mature ones {rule.frauds:,} are fraud, {rule.money:,.2f} in all"
        )
        yield from _not_computed(rule.not_computed)
        yield f"  precision: {_estimate(rule.precision, share=True)}"
        yield (
            f"  found by nothing else: {rule.frauds_alone:,} frauds, {rule.money_alone:,.2f} in all, and "
            f"{rule.false_alone:,} false alerts"
        )
    if idle := [rule.code for rule in worth if rule.earns_nothing]:
        yield printable(f"Earn nothing: {', '.join(idle)}. Each fraud that they find is found without them.")
