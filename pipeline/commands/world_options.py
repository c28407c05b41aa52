"""The options of commands that simulate a world of their own."""

from collections.abc import Callable
from typing import Any

import click

from pipeline.demo.world import World


def world_options(defaults: World) -> Callable[[Any], Any]:
    """``--cards``, ``--merchants`` and ``--seed``, by default those of ``defaults``."""
    options = (
        click.option(
            "--cards", type=click.IntRange(min=50), default=defaults.cards, show_default=True, help="Cards that pay."
        ),
        click.option(
            "--merchants",
            type=click.IntRange(min=50),
            default=defaults.merchants,
            show_default=True,
            help="Merchants that take cards.",
        ),
        click.option(
            "--seed", type=click.IntRange(min=0), default=defaults.seed, show_default=True, help="Of the simulation."
        ),
    )

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate
