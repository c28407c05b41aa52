"""Text of versions and their history, in 80 columns. Pure: plain values in, lines out."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from pipeline.demo.text import wrapped
from pipeline.models.description import Facts
from pipeline.models.version_history import VersionEvent, event_time
from pipeline.observability.terminal import printable, printable_json
from schemas.messages import Activation, Assessment, VersionReference
from schemas.times import utc_text

COLUMNS: Final = (("time", 16), ("version", 12), ("kind", 8), ("active", 6), ("by", 9), ("step", 9), ("validation", 10))
"""Columns of the table of versions, with their widths; with a space between them 76."""


def table_lines(rows: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """Yield the table of versions; a cell that is too long is cut."""
    yield " ".join(name.ljust(width) for name, width in COLUMNS).rstrip()
    for row in rows:
        yield " ".join(cut(row[name], width).ljust(width) for name, width in COLUMNS).rstrip()


def cut(text: str, width: int) -> str:
    """Return ``text`` without control characters in at most ``width`` columns.

    >>> cut("mona.weissenberger", 9)
    'mona.wei…'
    """
    text = printable(text)
    return text if len(text) <= width else f"{text[: width - 1]}…"


def figure(name: str, facts: Facts) -> str:
    """Return the one figure that the table shows of a version: average precision, or a policy's threshold."""
    if name == "policy":
        return f">= {facts['threshold']:.4f}"
    value = facts["metrics"].get("average_precision")
    return "" if value is None else f"AP {value:.3f}"


def value_text(value: Any) -> str:
    """Return a value as a person reads it.

    >>> value_text(0.123456), value_text(123456), value_text(["a", "b"]), value_text(None)
    ('0.1235', '123,456', 'a, b', '-')
    """
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        simple = all(not isinstance(item, dict | list) for item in value)
        return ", ".join(map(value_text, value)) if simple else f"{len(value)} rows"
    return printable(str(value))


def fact_lines(facts: Facts) -> Iterator[str]:
    """Yield what is known of a version, one fact a line, those that belong together indented."""
    for name, value in facts.items():
        words = name.replace("_", " ")
        if isinstance(value, dict):
            if value:
                yield f"{words}:"
                for key, item in value.items():
                    text = _pairs(item) if isinstance(item, dict) else _named(key, item)
                    yield from wrapped(f"{key.replace('_', ' ')}: {text}", "  ", "    ")
        elif value not in (None, [], ""):
            yield from wrapped(f"{words}: {value_text(value)}", "", "  ")


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {_named(key, item)}" for key, item in values.items())


def _named(key: str, value: Any) -> str:
    """Return a value as a person reads it; a seed is no count."""
    return str(value) if key == "seed" else value_text(value)


def difference_lines(found: Mapping[str, tuple[Any, Any]], first: str, second: str) -> Iterator[str]:
    """Yield in what two versions differ; of lists, what only one of them has."""
    for name, (a, b) in found.items():
        if isinstance(a, list) and isinstance(b, list):
            for version, values in ((first, a), (second, b)):
                if values:
                    yield from wrapped(f"{name} only in {version}: {value_text(values)}", "", "  ")
        else:
            key = name.rpartition(".")[2]
            yield from wrapped(f"{name}: {_named(key, a)} -> {_named(key, b)}", "", "  ")


def event_lines(event: VersionEvent) -> Iterator[str]:
    """Yield a record of `control`: when, what and who; then the versions; then why."""
    by = f"by {printable(event.by)}" if event.by else ""
    head = [utc_text(event_time(event)), f"{event_word(event)}", by]
    yield "  ".join(part for part in head if part)
    if isinstance(event, Activation | Assessment):
        named = reference_text(event.versions)
        against = reference_text(event.against) if isinstance(event, Assessment) else ""
        yield from wrapped(named + (f" against {against}" if against else ""), "  ", "    ")
    if event.reason:
        yield from wrapped(printable(event.reason), "  ", "    ")


def event_word(event: VersionEvent) -> str:
    """Return what happened, in one word or two."""
    if isinstance(event, Activation):
        return printable(event.step)
    if isinstance(event, Assessment):
        return f"assessment {printable(event.outcome)}"
    return "freeze" if event.frozen else "unfreeze"


def reference_text(references: Sequence[VersionReference]) -> str:
    """Return names and versions in a row."""
    return ", ".join(f"{printable(reference.name)} {printable(reference.version)}" for reference in references)


def json_line(value: Any) -> str:
    """Return a value as one line of JSON."""
    return printable_json(json.dumps(value, ensure_ascii=False, default=str))
