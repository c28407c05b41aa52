"""Tables as a terminal and as a page show them."""

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

COLUMNS: Final = 80
GAP: Final = "  "
NOTHING: Final = "-"


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column is a name, the others are figures unless ``words`` says so."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    words: frozenset[int] = frozenset({0})
    """Columns that are aligned to the left."""


def as_text(table: Table) -> str:
    """At most `COLUMNS` wide: a last column of words is wrapped, anything else that does not fit is an error.

    Raises ValueError for a table that is too wide.
    """
    lines = [table.head, *table.rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.head))]
    last = len(widths) - 1
    before = sum(widths[:last]) + len(GAP) * last
    if last in table.words:
        widths[last] = min(widths[last], COLUMNS - before)
    if widths[last] < 1 or before + widths[last] > COLUMNS:
        raise ValueError(f"{table.title}: a table of {before + widths[last]} columns; a terminal shows {COLUMNS}")
    shown = [*textwrap.wrap(table.title, COLUMNS)]
    for number, line in enumerate(lines):
        parts = textwrap.wrap(line[last], widths[last]) or [""]
        shown.append(GAP.join(_aligned([*line[:last], parts[0]], widths, table.words)).rstrip())
        shown += [" " * before + part for part in parts[1:]]
        if number == 0:
            shown.append("-" * (before + widths[last]))
    for note in table.notes:
        shown += textwrap.wrap(note, COLUMNS)
    return "\n".join(shown)


def as_markdown(table: Table) -> str:
    """A table of a page; its notes follow as paragraphs."""
    rule = ["---" if column in table.words else "---:" for column in range(len(table.head))]
    lines = [_cells(table.head), _cells(rule), *(_cells(row) for row in table.rows)]
    return "\n".join([*lines, *(f"\n{note}" for note in table.notes)])


def number(value: float | None, digits: int = 0) -> str:
    """A figure with thousands parted.

    >>> number(1234.56), number(1234.56, 1), number(None)
    ('1,235', '1,234.6', '-')
    """
    return NOTHING if value is None else f"{value:,.{digits}f}"


def significant(value: float | None) -> str:
    """Three digits, for ratios and for what spans several powers of ten.

    >>> significant(0.012345), significant(1.5), significant(64.21), significant(2_345_678)
    ('0.0123', '1.5', '64.2', '2,345,678')
    """
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.3g}"


def mebibytes(value: float | None) -> str:
    """Bytes in MiB."""
    return NOTHING if value is None else significant(value / 2**20)


def columns(*parts: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """Rows of columns."""
    return tuple(zip(*parts, strict=True))


def _aligned(cells: Sequence[str], widths: Sequence[int], words: frozenset[int]) -> list[str]:
    return [
        cell.ljust(width) if column in words else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]


def _cells(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"
