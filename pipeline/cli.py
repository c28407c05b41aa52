"""The ``fraud-pipeline`` command. Subcommands are imported when they are called, so that help is instant."""

import gc
import importlib
import logging
import os
import traceback
from collections.abc import Mapping
from typing import Any, Final

import click

from pipeline.observability.terminal import printable_lines
from pipeline.state.kernel_cache import use_shipped_kernels
from pipeline.state.state_directory import keep_private

COMMANDS: Final = {
    name: (f"pipeline.commands.{name.replace('-', '_')}", text)
    for name, text in (
        ("acl", "Show what each role may do on a secured cluster, or allow it."),
        ("alerts", "Follow the alert topic."),
        ("audit", "Say how many frauds nobody reports, and which share alerts find."),
        ("backtest", "Decide history again, by any models."),
        ("backtest-example", "Backtest two models on simulated history."),
        ("breaker", "Stop rules that exceed their caps."),
        ("broker", "Run the embedded Kafka broker in the foreground."),
        ("console", "Serve the analysts' console in a browser; manage its accounts."),
        ("compile", "Compile the kernels, for an image."),
        ("dead-letters", "List, explain and resend records that were not accepted."),
        ("drift", "Say which features, scores and reports have drifted."),
        ("export", "Write topics to Parquet files."),
        ("features", "List the features; check or publish files that declare more."),
        ("forget", "Destroy the key of a card's token."),
        ("inspect", "Show one record, and the rows of a block."),
        ("label", "Label a transaction as fraud or legitimate."),
        ("lists", "Keep block, allow and watch lists, and suppressions."),
        ("map", "Propose a mapping of your own JSON, and show what it makes of it."),
        ("models", "List, compare and change versions of models."),
        ("pace", "Keep alerts to a budget, hour by hour."),
        ("rates", "Publish rate tables, and list those that are."),
        ("replay", "Feed a file of transactions through the topics."),
        ("retrain", "Renew the active LightGBM version, and roll back what does harm."),
        ("rules", "Check rules in files, and bring them from draft to active."),
        ("run", "Run the whole pipeline on simulated transactions."),
        ("show", "Show what was decided about a transaction or a card, and why."),
        ("simulate", "Write simulated transactions to a file."),
        ("tokenise", "Write a topic's messages to the pipeline, with tokens for card numbers."),
        ("topics", "Create the topics, or check them."),
        ("train", "Train, calibrate and register a LightGBM version."),
        ("webhook", "Tell an URL of new cases and stopped rules."),
        ("worker", "Run agents."),
    )
}
"""Module and help of each command."""


INTERRUPTED: Final = 130
"""Exit code after Ctrl-C, as shells have it."""


class LazyGroup(click.Group):
    """A command group whose commands are imported on use.

    Args:
        lazy: Module and help by name of the command. A module has ``command``, or what is named behind a colon.
    """

    def __init__(self, *args: Any, lazy: Mapping[str, tuple[str, str]] = COMMANDS, **options: Any) -> None:
        super().__init__(*args, **options)
        self._lazy = lazy

    def invoke(self, ctx: click.Context) -> object:
        """Run the command that is asked for."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            # Click itself would end as after an error.
            raise click.exceptions.Exit(INTERRUPTED) from None
        except click.MissingParameter:
            # Click writes its text from the parameter alone.
            raise
        except click.ClickException as error:
            # It may name what somebody else wrote to a topic.
            error.message = printable_lines(error.message or _sentence(error.__cause__ or error))
            raise
        except (click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception as error:
            raise click.ClickException(printable_lines(_sentence(error))) from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, sorted."""
        del ctx
        return sorted(self._lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of ``cmd_name``."""
        del ctx
        if cmd_name not in self._lazy:
            return None
        use_shipped_kernels()  # before anything imports Numba
        module, _, name = self._lazy[cmd_name][0].partition(":")
        # Imports make many objects, which stay: looking for garbage among them takes a tenth of a second.
        gc.disable()
        try:
            command: click.Command = getattr(importlib.import_module(module), name or "command")
        finally:
            gc.enable()
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one line for each command, without importing any."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in sorted(self._lazy.items())])


def _sentence(error: BaseException) -> str:
    """Return any error in one sentence; an error of the program by its place, since its text may hold personal data."""
    from pipeline.observability.error_text import explained

    if logging.getLogger("pipeline").isEnabledFor(logging.DEBUG) or os.environ.get(
        "FRAUD_PIPELINE_LOG_LEVELS", ""
    ).startswith("debug"):
        click.echo(printable_lines("".join(traceback.format_exception(error))), err=True)
    if sentence := explained(error):
        return sentence
    at = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"{type(error).__name__} in {at.filename}, line {at.lineno}. This is an error of the program: please report it "
        "with its traceback, which FRAUD_PIPELINE_LOG_LEVELS=debug shows; see first whether that holds personal data"
    )


def _warn_of_variables() -> None:
    if any(name.upper().startswith("FRAUD_PIPELINE_") for name in os.environ):
        from pipeline.observability.error_text import unknown_variables

        for sentence in unknown_variables(os.environ):
            click.echo(f"Warning: {printable_lines(sentence)}", err=True)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fraud-pipeline")
def main() -> None:
    """Streaming fraud detection on Kafka."""
    keep_private()
    _warn_of_variables()


if __name__ == "__main__":
    main()
