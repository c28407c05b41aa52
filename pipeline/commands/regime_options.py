"""Options of the commands that turn a file's truth into labels."""

from typing import Final, TypedDict, get_args

import click

from pipeline.commands.option_groups import option_group
from pipeline.learning.regimes import LabelRegime, Reported
from schemas.times import SECONDS_PER_DAY

_DEFAULTS: Final = LabelRegime()
regime_options: Final = option_group(
    click.option(
        "--reported",
        type=click.Choice(get_args(Reported)),
        default=_DEFAULTS.reported,
        show_default=True,
        help="Which transactions get labels from a file's truth.",
    ),
    click.option(
        "--legitimate-share",
        type=click.FloatRange(min=0, max=1),
        default=_DEFAULTS.legitimate_share,
        show_default=True,
        help="Share of the legitimate transactions that get labels with --reported mixed.",
    ),
    click.option(
        "--delay-spread",
        type=click.FloatRange(min=0, max=5),
        default=_DEFAULTS.delay_spread,
        show_default=True,
        help="Standard deviation of the logarithm of the labels' delay; 0 for one delay.",
    ),
    click.option(
        "--early-share",
        type=click.FloatRange(min=0, max=1),
        default=_DEFAULTS.early_share,
        show_default=True,
        help="Share of the reported frauds that are reported within --early-hours.",
    ),
    click.option(
        "--early-hours",
        type=click.FloatRange(min=0, min_open=True, max=720),
        default=_DEFAULTS.early_hours,
        show_default=True,
        help="Time within which early reports come, evenly.",
    ),
    click.option(
        "--never-reported",
        type=click.FloatRange(min=0, max=1, max_open=True),
        default=_DEFAULTS.never_reported,
        show_default=True,
        help="Share of the frauds that nobody reports.",
    ),
    click.option(
        "--corrected-share",
        type=click.FloatRange(min=0, max=1),
        default=_DEFAULTS.corrected_share,
        show_default=True,
        help="Share of the labels that say the opposite first.",
    ),
    click.option(
        "--correction-days",
        type=click.FloatRange(min=0, min_open=True, max=365),
        default=_DEFAULTS.correction_days,
        show_default=True,
        help="From such a label to its correction.",
    ),
)
"""The options of a label regime, whose values are `RegimeOptions`."""


class RegimeOptions(TypedDict):
    """Fields of a `LabelRegime` that `regime_options` adds to a command."""

    reported: Reported
    legitimate_share: float
    delay_spread: float
    early_share: float
    early_hours: float
    never_reported: float
    corrected_share: float
    correction_days: float


def regime_of(options: RegimeOptions, label_delay_s: float) -> LabelRegime:
    """Return the label regime that a command's options name."""
    return declared_regime(options, label_delay_s / SECONDS_PER_DAY)


def declared_regime(options: RegimeOptions, delay_days: float) -> LabelRegime:
    """Return the same, for a delay in days."""
    return LabelRegime(
        reported=options["reported"],
        delay_days=delay_days,
        delay_spread=options["delay_spread"],
        never_reported=options["never_reported"],
        early_share=options["early_share"],
        early_hours=options["early_hours"],
        legitimate_share=options["legitimate_share"],
        corrected_share=options["corrected_share"],
        correction_days=options["correction_days"],
    )
