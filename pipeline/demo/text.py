"""Alerts and figures as text for a terminal. Pure: messages in, lines out."""

import textwrap
from datetime import UTC
from typing import Final

from rich.text import Text

from pipeline.observability.terminal import printable
from schemas.messages import Alert
from schemas.times import utc_text

PLAIN_WIDTH: Final = 80
"""Columns of lines that go to a pipe or a file."""
NARROWEST: Final = 40


def duration_text(seconds: float) -> str:
    """A length of time in at most two units.

    >>> [duration_text(s) for s in (4.2, 65, 7300)]
    ['4 s', '1 min 05 s', '2 h 01 min']
    """
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3_600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3_600} h {whole % 3_600 // 60:02d} min"


def money_text(amount: object, currency: str) -> str:
    """An amount (decimal or float, major unit) and its currency, as reasons write it.

    >>> money_text(231.5, "EUR")
    '231.50 EUR'
    """
    return f"{amount:,.2f} {printable(currency)}" if isinstance(amount, float) else f"{amount:,} {printable(currency)}"


def wrapped(text: str, first: str = "", rest: str = "", width: int = PLAIN_WIDTH) -> list[str]:
    """Return text in lines of at most ``width`` columns; a word that is longer stays whole.

    Args:
        text: The text, without line ends.
        first: What begins the first line.
        rest: What begins the others.
        width: Columns.
    """
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )


def score_style(score: float) -> str:
    """Colour of a score: the surer, the louder."""
    if score >= 0.8:
        return "bold red"
    return "red" if score >= 0.4 else "yellow"


def alert_lines(alert: Alert, width: int = PLAIN_WIDTH, *, number: int = 1, late: bool = False) -> list[Text]:
    """Write an alert as lines of at most ``width`` columns (an identifier that is longer stays whole).

    First when, how much and how sure; then who and where; then every reason's sentence.

    Args:
        alert: The alert.
        width: Columns.
        number: Which one of its case it is, from 1.
        late: Whether a later alert of its card was shown before it.
    """
    width = max(width, NARROWEST)
    head = Text(utc_text(alert.event_time), style="bold")
    home = f" ({money_text(alert.amount_base, alert.base_currency)})" if alert.currency != alert.base_currency else ""
    head.append(f"  {money_text(alert.amount, alert.currency)}{home}")
    head.append(f"  score {alert.score:.3f}", style=score_style(alert.score))
    severity = f"  severity {money_text(alert.severity, alert.base_currency)}"
    lines = [head]
    if len(head) + len(severity) <= width:
        head.append(severity)
    else:
        lines.append(Text(severity))
    facts = [
        f"card {printable(alert.card_id)}",
        f"merchant {printable(alert.merchant_id)}",
        f"transaction {printable(alert.transaction_id)}",
        f"case {printable(alert.case_id)}, alert {number}" if number > 1 else "",
        "out of order: a later alert of this card came before" if late else "",
        f"chosen by {printable(alert.selection)}" if alert.selection != "score" else "",
    ]
    lines += [Text(line, style="cyan") for line in fact_lines([fact for fact in facts if fact], width)]
    for reason in alert.reasons:
        lines += [Text(line) for line in wrapped(printable(reason.sentence), "  - ", "    ", width)]
    return lines


def alert_rows(alert: Alert, width: int = PLAIN_WIDTH) -> list[Text]:
    """Write an alert on a line cut to ``width`` (time, amount, score, card, merchant), its strongest reason below.

    The amount stands once: in the reason, where that names it.
    """
    indent = "    "
    reasons = [printable(reason.sentence) for reason in alert.reasons[:1]]
    amount = money_text(alert.amount, alert.currency)
    row = Text(f"{alert.event_time.astimezone(UTC):%m-%d %H:%M} ")
    row.append(f"{'' if any(amount in reason for reason in reasons) else amount:>13} ")
    row.append(f"{alert.score:.2f} ", style=score_style(alert.score))
    row.append(f"card {printable(alert.card_id)} at {printable(alert.merchant_id)}", style="cyan")
    row.truncate(width, overflow="ellipsis")
    return [
        row,
        *(
            Text(line)
            for reason in reasons
            for line in textwrap.wrap(reason, width, initial_indent=indent, subsequent_indent=indent)
        ),
    ]


def fact_lines(facts: list[str], width: int = PLAIN_WIDTH) -> list[str]:
    """``facts`` joined by commas into as few indented lines as fit; a fact is never divided."""
    lines: list[str] = []
    for fact in facts:
        if lines and len(lines[-1]) + 2 + len(fact) <= width:
            lines[-1] += f"  {fact}"
        else:
            lines.append(f"  {fact}")
    return lines
