"""Options of the commands that read a file of transactions: which of its columns is which field."""

from pathlib import Path
from typing import Final, TypedDict

import click
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.commands.option_groups import option_group
from pipeline.engine.whole_amounts import amount_counts, suspicion, suspicious
from pipeline.history.files import PRESETS, ColumnMapping, currency_decimals, numbers, read_tables, resolve_mapping
from pipeline.observability.terminal import printable

_LOOKED_AT: Final = 50_000
"""First rows of a file whose amounts are looked at."""
_LARGEST: Final = 1e12

column_options: Final = option_group(
    click.option(
        "--preset", type=click.Choice(sorted(PRESETS)), help="Column names; found by themselves when they fit."
    ),
    click.option("--map", "changes", multiple=True, metavar="FIELD=COLUMN", help="Column of a field; may be repeated."),
    click.option("--currency", default="EUR", show_default=True, help="Currency of a file without such a column."),
    click.option("--time-zone", default="UTC", show_default=True, help="Zone of times without an offset."),
)
"""The options of a file's columns, whose values are `ColumnOptions`."""


class ColumnOptions(TypedDict):
    """The values of `column_options`."""

    preset: str | None
    changes: tuple[str, ...]
    currency: str
    time_zone: str


def file_mapping(file: Path, options: ColumnOptions) -> ColumnMapping:
    """Build the column mapping of a file from a command's options.

    Args:
        file: The file of transactions.
        options: Values of `column_options`.

    Raises:
        UnusableSource: A column is missing, or the file cannot be read.
        click.BadParameter: A change is not written FIELD=COLUMN.
    """
    pairs = {}
    for change in options["changes"]:
        name, equals, column = change.partition("=")
        if not (name and equals and column):
            raise click.BadParameter(f"{change!r}: write FIELD=COLUMN, such as card_id=CUSTOMER_ID", param_hint="--map")
        pairs[name] = column
    mapping = resolve_mapping(
        file, pairs, preset=options["preset"], currency=options["currency"], time_zone=options["time_zone"]
    )
    for warning in warnings_of_amounts(file, mapping):
        click.secho(f"Warning: {printable(warning)}.", fg="yellow", err=True)
    return mapping


def warnings_of_amounts(file: Path, mapping: ColumnMapping) -> list[str]:
    """Return a sentence for each currency of which none of a file's first amounts has decimals.

    Args:
        file: The file of transactions.
        mapping: Its columns.

    Raises:
        UnusableSource: The file cannot be read.
    """
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
