"""The mapping of a file of transactions, for the commands that read one."""

from pathlib import Path
from typing import Final

import click
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.engine.records.whole_amounts import amount_counts, suspicion, suspicious
from pipeline.history.canonical_columns import UnusableSource, numbers
from pipeline.history.files import ColumnMapping, column_names, currency_decimals, is_json, read_tables, resolve_mapping
from pipeline.history.mapped_files import FileMapping, accept_mapped, mapped_tables
from pipeline.observability.terminal import printable
from pipeline.settings import Settings
from pipeline.settings.mapping_file import mapping_of
from pipeline.settings.rate_table import load_rates

_LOOKED_AT: Final = 50_000
"""First rows of a file whose amounts are looked at."""
_LARGEST: Final = 1e12

mapping_option = click.option(
    "--mapping",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Read FILE by this mapping.  [default: by the names of its columns]",
)


def file_mapping(file: Path, mapping: Path | None, settings: Settings) -> ColumnMapping | FileMapping:
    """Return the mapping of a file of transactions, and warn of amounts that look like cents.

    Args:
        file: The file.
        mapping: A mapping file; None: the file's columns have known names.
        settings: Name the rate table.

    Raises:
        UnusableSource: A column is missing, or the file cannot be read.
        MappingError: The mapping file is none.
    """
    found = resolve_mapping(file) if mapping is None else _mapping_of(file, mapping, settings)
    for warning in _warnings_of_amounts(file, found):
        click.secho(f"Warning: {printable(warning)}.", fg="yellow", err=True)
    return found


def _mapping_of(file: Path, mapping: Path, settings: Settings) -> FileMapping:
    found = FileMapping(mapping_of(mapping), load_rates(settings))
    if not is_json(file):
        present = column_names(file)
        if absent := [column for column in dict.fromkeys(found.columns.values()) if column not in present]:
            raise UnusableSource(
                f"{file} has no column {', '.join(absent)}, which {mapping} names; it has {', '.join(present)}"
            )
    return found


def _warnings_of_amounts(file: Path, mapping: ColumnMapping | FileMapping) -> list[str]:
    """Return a sentence for each currency of which none of a file's first amounts has decimals."""
    codes, minor = _first_amounts(file, mapping)
    counts = amount_counts(codes, minor, currency_decimals)
    return [suspicion(code, counts[code, False]) for code in suspicious(counts)]


def _first_amounts(file: Path, mapping: ColumnMapping | FileMapping) -> tuple[pa.Array, NDArray[np.int64]]:
    """Return the currencies of a file's first amounts, and the amounts in minor units."""
    if isinstance(mapping, FileMapping):
        rows, _ = accept_mapped(next(mapped_tables(file, mapping, chunk_rows=_LOOKED_AT // 5)), mapping.rates)
        return rows.currency, rows.amount_minor
    names = [mapping.columns[name] for name in ("amount", "currency") if name in mapping.columns]
    table = next(read_tables(file, names, batch_rows=_LOOKED_AT), None)
    if table is None:
        return pa.array([], pa.string()), np.empty(0, np.int64)
    amount, _ = numbers(table.column(names[0]))
    given = np.abs(amount) < _LARGEST
    text = table.column(names[1]).cast(pa.string()).combine_chunks() if len(names) > 1 else None
    codes = pa.array([mapping.currency] * len(amount)) if text is None else pc.fill_null(text, "")
    codes = codes.filter(pa.array(given))
    unit = np.array([10.0 ** currency_decimals(code) for code in codes.to_pylist()])
    return codes, np.rint(amount[given] * unit).astype(np.int64)
