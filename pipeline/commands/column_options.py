"""Options of the commands that read a file of transactions: which of its columns is which field."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import click
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Meta

from pipeline.engine.records.whole_amounts import amount_counts, suspicion, suspicious
from pipeline.history.canonical_columns import numbers
from pipeline.history.files import PRESETS, ColumnMapping, currency_decimals, read_tables, resolve_mapping
from pipeline.observability.terminal import printable

_LOOKED_AT: Final = 50_000
"""First rows of a file whose amounts are looked at."""
_LARGEST: Final = 1e12


@dataclass(frozen=True, kw_only=True)
class ColumnOptions:
    """Names of the columns of a file, and defaults of those that it lacks."""

    preset: Annotated[
        str | None,
        Meta(description="Column names; found by themselves when they fit.", extra={"choices": sorted(PRESETS)}),
    ] = None
    changes: Annotated[
        Sequence[str],
        Meta(
            description="Column of a field; may be repeated.",
            extra={"option": "--map changes", "metavar": "FIELD=COLUMN"},
        ),
    ] = ()
    currency: Annotated[str, Meta(description="Currency of a file without such a column.")] = "EUR"
    time_zone: Annotated[str, Meta(description="Zone of times without an offset.")] = "UTC"


def file_mapping(file: Path, options: ColumnOptions) -> ColumnMapping:
    """Build the column mapping of a file of transactions, and warn of amounts that look like cents.

    Raises:
        UnusableSource: A column is missing, or the file cannot be read.
        click.BadParameter: A change is not written FIELD=COLUMN.
    """
    pairs = {}
    for change in options.changes:
        name, equals, column = change.partition("=")
        if not (name and equals and column):
            raise click.BadParameter(f"{change!r}: write FIELD=COLUMN, such as card_id=CUSTOMER_ID", param_hint="--map")
        pairs[name] = column
    mapping = resolve_mapping(
        file, pairs, preset=options.preset, currency=options.currency, time_zone=options.time_zone
    )
    for warning in _warnings_of_amounts(file, mapping):
        click.secho(f"Warning: {printable(warning)}.", fg="yellow", err=True)
    return mapping


def _warnings_of_amounts(file: Path, mapping: ColumnMapping) -> list[str]:
    """Return a sentence for each currency of which none of a file's first amounts has decimals."""
    names = [mapping.columns[name] for name in ("amount", "currency") if name in mapping.columns]
    table = next(read_tables(file, names, batch_rows=_LOOKED_AT), None)
    if table is None:
        return []
    amount, _ = numbers(table.column(names[0]))
    given = np.abs(amount) < _LARGEST
    text = table.column(names[1]).cast(pa.string()).combine_chunks() if len(names) > 1 else None
    codes = pa.array([mapping.currency] * len(amount)) if text is None else pc.fill_null(text, "")
    codes = codes.filter(pa.array(given))
    unit = np.array([10.0 ** currency_decimals(code) for code in codes.to_pylist()])
    counts = amount_counts(codes, np.rint(amount[given] * unit).astype(np.int64), currency_decimals)
    return [suspicion(code, counts[code, False]) for code in suspicious(counts)]
