"""Options of the commands that turn a file's truth into labels."""

from typing import Any, Final, get_args

import click

from pipeline.learning.regimes import Reported

_OPTIONS: Final = (
    click.option(
        "--reported",
        type=click.Choice(get_args(Reported)),
        default="all",
        show_default=True,
        help="Which transactions get labels from a file's truth.",
    ),
    click.option(
        "--delay-spread",
        type=click.FloatRange(min=0, max=5),
        default=0.0,
        show_default=True,
        help="Standard deviation of the logarithm of the labels' delay; 0 for one delay.",
    ),
    click.option(
        "--never-reported",
        type=click.FloatRange(min=0, max=1, max_open=True),
        default=0.0,
        show_default=True,
        help="Share of the frauds that nobody reports.",
    ),
)


def regime_options(command: Any) -> Any:
    """Add ``--reported``, ``--delay-spread`` and ``--never-reported``."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
