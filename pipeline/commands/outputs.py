"""Files that a command writes at its end: tried before it begins, and each written whatever becomes of the others."""

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import click
import pandas as pd

FORMULA_STARTS: Final = (*"=+-@\t\r\n", *"\uff1d\uff0b\uff0d\uff20")
"""Beginnings of a cell that spreadsheets run as a formula; those of full width too, which some take for the others."""
Write = tuple[Path, Callable[[Path], object]]
"""An output's path, and the function that writes it there."""


def refuse_unwritable(files: Iterable[Path | None], directory: Path | None = None) -> None:
    """Raise a `click.ClickException` for what could not be written; ``directory`` may still have to be made.

    Nothing is left behind. A directory is tried rather than asked for its mode: not every file system keeps to that.
    """
    for path in files:
        if path is None:
            continue
        if not path.parent.is_dir():
            raise click.ClickException(f"{path} cannot be written: there is no directory {path.parent}")
        _try(path, path.parent)
    if directory is not None:
        there = next(path for path in (directory, *directory.absolute().parents) if path.exists())
        _try(directory, there)


def write_each(writes: Iterable[Write]) -> None:
    """Write all that can be written; a `click.ClickException` then reports what could not."""
    failed = []
    for path, write in writes:
        try:
            write(path)
        except OSError as error:
            failed.append(f"{path} was not written: {error.strerror or error}")
        else:
            click.echo(f"wrote {path}", err=True)
    if failed:
        raise click.ClickException("; ".join(failed))


def spreadsheet_safe(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table for a CSV file, with an apostrophe before each text that a spreadsheet would run as a formula."""
    return frame.map(lambda cell: f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA_STARTS) else cell)


def _try(path: Path, directory: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=directory):
            pass
        if path.is_file():
            with path.open("r+b"):
                pass
    except OSError as error:
        raise click.ClickException(f"{path} cannot be written: {error.strerror or error}") from error
