"""Parts of ``make quality``: units that are measured one by one, and the tables that are made of them."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.evaluation.detection import difference

Found = Mapping[str, Any]
"""The measurement of a unit, as JSON has it."""


class Unit(NamedTuple):
    """A measurement that needs no other one. It may run in another process."""

    name: str
    measure: Callable[..., Found]
    arguments: tuple[Any, ...]


class Table(NamedTuple):
    """A table with its title, in Markdown."""

    title: str
    lines: tuple[str, ...]


class Part(NamedTuple):
    """A part of the measurement.

    Attributes:
        items: Names that ``--only`` knows.
        units: Called with the file, whether the final weeks are read, and the items to measure.
        tables: Called with what the units found, by their names.
    """

    items: tuple[str, ...]
    units: Callable[[Path, bool, Collection[str]], Sequence[Unit]]
    tables: Callable[[Mapping[str, Found]], Iterator[Table]]


def markdown(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a table of cells."""
    return Table(title, tuple(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)))


def compared(row: Sequence[float], base: Sequence[float], digits: int = 4) -> str:
    """Return the mean difference of paired days with its 95 % interval, as a cell."""
    source = difference(row, base)
    return f"{source['mean']:+.{digits}f} [{source['low']:+.{digits}f}, {source['high']:+.{digits}f}]"
