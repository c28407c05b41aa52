"""Options of the commands that read a file of transactions: which of its columns is which field."""

from pathlib import Path
from typing import Final, TypedDict

import click

from pipeline.commands.option_groups import option_group
from pipeline.history.files import PRESETS, ColumnMapping, resolve_mapping

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
    return resolve_mapping(
        file, pairs, preset=options["preset"], currency=options["currency"], time_zone=options["time_zone"]
    )
