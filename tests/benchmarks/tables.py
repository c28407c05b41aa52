"""Tables as a terminal and as a page show them."""

import itertools
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

COLUMNS: Final = 80
GAP: Final = "  "
LEAST_WIDTH: Final = 12
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
    """At most `COLUMNS` wide, for which the widest column of words is wrapped; figures alone may need more."""
    lines = [table.head, *table.rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.head))]
    too_wide = sum(widths) + len(GAP) * (len(widths) - 1) - COLUMNS
    widest = max(table.words, key=lambda column: widths[column], default=None)
    if widest is not None:
        widths[widest] = max(LEAST_WIDTH, widths[widest] - max(0, too_wide))
    shown = [*textwrap.wrap(table.title, COLUMNS)]
    for number, line in enumerate(lines):
        cells = [textwrap.wrap(cell, width) or [""] for cell, width in zip(line, widths, strict=True)]
        for parts in itertools.zip_longest(*cells, fillvalue=""):
            shown.append(GAP.join(_aligned(parts, widths, table.words)).rstrip())
        if number == 0:
            shown.append("-" * (sum(widths) + len(GAP) * (len(widths) - 1)))
    for note in table.notes:
        shown += textwrap.wrap(note, COLUMNS)
    return "\n".join(shown)


def as_markdown(table: Table) -> str:
    """A table of a page below its title; its notes follow as paragraphs."""
    rule = ["---" if column in table.words else "---:" for column in range(len(table.head))]
    lines = [_cells(table.head), _cells(rule), *(_cells(row) for row in table.rows)]
    return "\n".join([f"{table.title}:", "", *lines, *(f"\n{note}" for note in table.notes)])


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


def _aligned(cells: Sequence[str], widths: Sequence[int], words: frozenset[int]) -> list[str]:
    return [
        cell.ljust(width) if column in words else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]


def _cells(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"
