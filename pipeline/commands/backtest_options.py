"""The trainings and models of a backtest as options name them, and the progress of one."""

from typing import Any

import click

from pipeline.backtest.input.span import moment
from pipeline.backtest.runner.statistics import BacktestProgress
from pipeline.backtest.training.variants import Training
from pipeline.commands.progress import ProgressBar


def show_step(bar: ProgressBar, step: BacktestProgress) -> None:
    """Report the progress of a backtest."""
    where = f"{moment(step.event_time_us)}  {step.stage}".rstrip()
    bar.show(where, step.transactions, "transactions", step.elapsed_s, step.share)


def named_models(models: tuple[str, ...]) -> dict[str, str]:
    """Return versions by the names of their variants, of ``NAME=VERSION`` or ``VERSION``.

    Raises:
        click.BadParameter: Two have one name.
    """
    named = {}
    for model in models:
        name, _, version = model.rpartition("=")
        if (name or version) in named:
            raise click.BadParameter(f"{model!r} is named twice: write NAME=VERSION", param_hint="--model")
        named[name or version] = version
    return named


def training_of(variants: tuple[str, ...], **schedule: Any) -> Training | None:
    """Return the training that a command's options name, None where they name none.

    Args:
        variants: ``NAME`` or ``NAME=FEATURES`` of each.
        schedule: The other fields of `Training`.

    Raises:
        click.UsageError: An option says how to train, and none says what.
    """
    if not variants:
        # What --no-early-reports says holds of no training too.
        if any(value for name, value in schedule.items() if name != "early_reports"):
            raise click.UsageError("nothing is trained: name a variant with --train NAME, or leave its options out")
        return None
    if schedule["start"] is None:
        raise click.UsageError("--train needs to know where training begins: add --train-from")
    named: dict[str, list[str]] = {}
    for variant in variants:
        name, _, patterns = variant.partition("=")
        if not name or name in named:
            raise click.BadParameter(f"{variant!r} needs a name of its own: write NAME=FEATURES", param_hint="--train")
        named[name] = patterns.split(",") if patterns else []
    return Training(variants=named, **schedule)
