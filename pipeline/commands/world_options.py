"""The options of commands that simulate a world of their own."""

import click

from pipeline.commands.option_groups import Decorator, option_group
from pipeline.demo.world import World


def world_options(defaults: World) -> Decorator:
    """Return ``--cards``, ``--merchants`` and ``--seed``, by default those of ``defaults``."""
    return option_group(
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
