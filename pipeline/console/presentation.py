"""Values of the console as text for people: numbers, times, addresses of pages and sentences."""

import csv
import hashlib
import io
import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import quote

import msgspec

from pipeline.console.case_events import CLAIMED, CLOSED, NOTED, REOPENED, SNOOZED, UNDOABLE, UNDONE, ReplayedEvent
from pipeline.console.views import CaseView, QueueRow, TimelineEntry
from pipeline.decision.reason_texts import ago
from pipeline.features.built_in import COUNT, MONEY, MULTIPLE, SECONDS
from pipeline.features.catalogue import BY_NAME
from pipeline.observability.terminal import printable
from schemas.codec import timestamp_us
from schemas.messages import Label
from schemas.times import US_PER_DAY, US_PER_HOUR, US_PER_SECOND, time_of

ABSENT: Final = "\u2013"
"""Shown where there is no value."""
MOST_ENTRIES: Final = 100
"""Notes, and actions, that a case's page shows at most."""
HIDDEN: Final = "hidden"
"""Shown in place of a value that would give away the score of a blind case."""
BLIND_SENTENCE: Final = "Judge this one without the score: it is part of an audit."
EVENING_HOUR, MORNING_HOUR = 18, 8
SNOOZES: Final = {
    "hour": "1 hour",
    "tonight": f"Tonight, {EVENING_HOUR}:00 UTC",
    "tomorrow": f"Tomorrow, {MORNING_HOUR}:00 UTC",
    "days": "3 days",
}
FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""Characters that make a spreadsheet compute a cell."""
CSV_COLUMNS: Final = (
    "rank", "case_id", "card_id", "status", "raised_at", "newest_alert_at", "alerts", "money_at_risk", "currency",
    "expected_loss", "reason", "holder", "held_until", "snoozed_until", "audit",
)  # fmt: skip
_FIRST_US: Final = timestamp_us(datetime.min.replace(tzinfo=UTC))
_LAST_US: Final = timestamp_us(datetime.max.replace(tzinfo=UTC))
_MINUTE_US: Final = 60 * US_PER_SECOND
_KINDS: Final = {
    CLAIMED: "claimed the case",
    NOTED: "wrote a note",
    CLOSED: "closed the case",
    SNOOZED: "snoozed the case",
    REOPENED: "reopened the case",
    UNDONE: "undid an action",
}

identifier = printable


def case_url(case_id: str, suffix: str = "") -> str:
    """Return the address of a case, or of something below it.

    >>> case_url("card/7?-1", "/label")
    '/cases/card%2F7%3F-1/label'
    """
    return f"/cases/{quote(case_id, safe='')}{suffix}"


def utc(time_us: int) -> datetime:
    """Return a time of microseconds since 1970 as a datetime, the nearest one that there is.

    >>> utc(10**18).year
    9999
    """
    return time_of(min(max(time_us, _FIRST_US), _LAST_US))


def moment(time: int | datetime | None) -> str:
    """Write a time to the minute.

    >>> moment(1_700_000_000_000_000)
    '2023-11-14 22:13'
    """
    if time is None:
        return ABSENT
    return (utc(time) if isinstance(time, int) else time.astimezone(UTC)).strftime("%Y-%m-%d %H:%M")


def short(time: int | datetime, now_us: int) -> str:
    """Write a time to the minute, without the year where it is the present one."""
    text = moment(time)
    return text[5:] if text[:4] == moment(now_us)[:4] else text


def age(since_us: int, now_us: int) -> str:
    """Write a span in its largest unit.

    >>> age(0, 90_000_000), age(0, 7_200_000_000), age(0, 300_000_000_000)
    ('1 min', '2 h', '3 d')
    """
    span_us = max(now_us - since_us, 0)
    if span_us < US_PER_HOUR:
        return f"{span_us // _MINUTE_US} min"
    return f"{span_us // US_PER_HOUR} h" if span_us < 2 * US_PER_DAY else f"{span_us // US_PER_DAY} d"


def money(amount: float | None, currency: str) -> str:
    """Write an amount with its currency; `HIDDEN` where it is None."""
    return HIDDEN if amount is None else f"{amount:,.2f} {currency}"


def number(value: float | None) -> str:
    """Write a number with as many digits as help to read it.

    >>> number(3.0), number(1234.5), number(0.01234), number(None)
    ('3', '1,234.50', '0.0123', '–')
    """
    if value is None or math.isnan(value):
        return ABSENT
    if math.isinf(value):
        return str(value)
    if value == int(value) and abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:,.2f}" if abs(value) >= 1 else f"{value:.3g}"


def feature_value(name: str, value: float | None) -> str:
    """Write the value of a feature in its unit."""
    feature = BY_NAME.get(name)
    if feature is None or value is None or math.isnan(value):
        return number(value)
    match feature.unit:
        case unit if unit == SECONDS:
            return ago(value)
        case unit if unit == MONEY:
            return f"{value:,.2f}"
        case unit if unit == COUNT:
            return f"{value:,.0f}"
        case unit if unit == MULTIPLE:
            return f"{value:,.2f} \u00d7"
    return number(value)


def signed(share: float) -> str:
    """Write log-odds with their sign.

    >>> signed(1.204), signed(-0.5)
    ('+1.20', '−0.50')
    """
    return f"{share:+.2f}".replace("-", "\u2212")


def percent(share: float | None) -> str:
    """Write a share as a percentage.

    >>> percent(0.9134), percent(None)
    ('91.3 %', '–')
    """
    return ABSENT if share is None else f"{100 * share:.1f} %"


def bar(value: float | None, largest: float) -> str:
    """Return the width of a bar, 0 to 100."""
    share = abs(value) / largest if value and largest else 0.0
    return f"{min(100 * share, 100):.1f}" if share > 0 else "0"


def counted(number_of: int, noun: str) -> str:
    """Return a number of things.

    >>> counted(1, "case"), counted(1200, "case")
    ('1 case', '1,200 cases')
    """
    return f"{number_of:,} {noun}{'' if number_of == 1 else 's'}"


def snooze_end(choice: str, own: str, now: datetime) -> datetime:
    """Return the end of a snooze.

    Args:
        choice: A key of `SNOOZES`, or ``own``.
        own: Own time as a form has it, such as ``2026-01-31T08:00+01:00``; without an offset it is in UTC.
        now: The present, in UTC.

    Raises:
        ValueError: It is no time, or lies in the past.
    """
    match choice:
        case "hour":
            return now + timedelta(hours=1)
        case "tonight":
            evening = now.replace(hour=EVENING_HOUR, minute=0, second=0, microsecond=0)
            return evening if evening > now else evening + timedelta(days=1)
        case "tomorrow":
            return (now + timedelta(days=1)).replace(hour=MORNING_HOUR, minute=0, second=0, microsecond=0)
        case "days":
            return now + timedelta(days=3)
    try:
        given = datetime.fromisoformat(own)
        end = given.replace(tzinfo=UTC) if given.tzinfo is None else given.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(
            "Give the end of the snooze as a date, a time and an offset from UTC, such as +01:00."
        ) from None
    if end <= now:
        raise ValueError("The snooze would end in the past: give a later time.")
    return end


def labels_by_id(case: CaseView) -> dict[str, Label]:
    """Return the labels of a case's alerts by their ``label_id``."""
    known = (view.label for alert in case.alerts for view in alert.labels)
    return {label.label_id: label for label in known if label.label_id is not None}


def sentence(entry: ReplayedEvent, labels: dict[str, Label]) -> str:
    """Return an action as the rest of a sentence that begins with the account.

    Args:
        entry: The action.
        labels: Labels of the case by their ``label_id``.
    """
    event = entry.event
    text = _KINDS.get(event.kind, identifier(event.kind))
    if event.labels and event.kind != UNDONE:
        known = sorted({labels[name].label for name in event.labels if name in labels})
        text = f"labelled {counted(len(event.labels), 'transaction')}" + (f" as {' and '.join(known)}" if known else "")
    if event.until is not None:
        text += f" until {moment(event.until)} UTC"
    if not entry.counted:
        text += " (no effect: it came too late)"
    return f"{text} (undone)" if entry.undone else text


def last_undoable(history: Sequence[ReplayedEvent], account: str | None) -> ReplayedEvent | None:
    """Return the newest action that can be undone.

    Args:
        history: Actions, the oldest first.
        account: Whose actions; None for everybody's.
    """
    for entry in reversed(history):
        mine = account is None or entry.event.by == account
        if mine and entry.event.kind in UNDOABLE and entry.counted and not entry.undone:
            return entry
    return None


def digest(case: CaseView) -> str:
    """Return the SHA-256 of what a case's page shows, hexadecimal."""
    return hashlib.sha256(record(case)).hexdigest()


def record(case: CaseView) -> bytes:
    """Return a case as JSON that can stand in an element of HTML."""
    encoded = msgspec.json.encode({name: _plain(value) for name, value in case._asdict().items()})
    for character, escaped in ((b"<", b"\\u003c"), (b">", b"\\u003e"), (b"&", b"\\u0026")):
        encoded = encoded.replace(character, escaped)
    return encoded


def _plain(value: Any) -> Any:
    """Return named tuples as objects, with the names of their fields."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: _plain(item) for name, item in value._asdict().items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def points(entries: Iterable[TimelineEntry]) -> list[dict[str, Any]]:
    """Return transactions as a chart reads them, the oldest first."""
    return [_point(entry) for entry in sorted(entries, key=lambda entry: entry.event_us)]


def _point(entry: TimelineEntry) -> dict[str, Any]:
    mark = entry.label if entry.label in {"fraud", "legitimate"} else "alert" if entry.case_id else ""
    merchant, card = identifier(entry.merchant_id), identifier(entry.card_id)
    amount = f"{entry.amount} {entry.currency}"
    text = f"{moment(entry.event_us)} UTC, {amount} at {merchant}, card {card}: {mark or 'no label'}"
    return {"t": entry.event_us // US_PER_SECOND, "y": entry.amount_base, "mark": mark, "text": text}


def csv_cell(value: object) -> str:
    """Return a cell that no spreadsheet takes for a formula.

    >>> csv_cell("=HYPERLINK(1)"), csv_cell(None), csv_cell(2)
    ("'=HYPERLINK(1)", '', '2')
    """
    text = "" if value is None else str(value)
    return f"'{text}" if isinstance(value, str) and text.lstrip(" ").startswith(FORMULA_STARTS) else text


def csv_text(rows: Iterable[QueueRow]) -> str:
    """Return a queue as CSV (RFC 4180)."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(CSV_COLUMNS)
    for rank, row in enumerate(rows, 1):
        times = (row.holder_until_us, row.snoozed_until_us)
        held_until, snoozed_until = ("" if time is None else utc(time).isoformat() for time in times)
        writer.writerow(
            csv_cell(value)
            for value in (
                rank, row.case_id, row.card_id, row.status, utc(row.raised_us).isoformat(),
                utc(row.last_raised_us).isoformat(), row.alerts, f"{row.money_at_risk:.2f}", row.currency,
                None if row.expected_loss is None else f"{row.expected_loss:.2f}", row.reason, row.holder, held_until,
                snoozed_until, "blind" if row.blind else "",
            )
        )  # fmt: skip
    return out.getvalue()
