"""No program ends without a word of what went wrong and where."""

import errno
import sys
from types import ModuleType

import click
import pytest
from click.testing import CliRunner, Result

from pipeline.cli import LazyGroup
from pipeline.kafka.cluster.errors import TopicError
from pipeline.observability.error_text import explained

RESET = ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        # What a future raises that nobody completes is an OSError without a text.
        (TimeoutError(), None),
        (RESET, None),
        (TimeoutError("no answer for 10 s"), "no answer for 10 s"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/a/b"), "/a/b: No such file or directory"),
        (
            OSError(errno.EMFILE, "Too many open files"),
            "Too many open files: raise the limit of open files (ulimit -n)",
        ),
        (OSError("ClientError: access denied"), "ClientError: access denied"),
    ],
)
def test_an_error_of_the_system_is_a_sentence_only_where_it_says_something(
    error: OSError, sentence: str | None
) -> None:
    assert explained(error) == sentence


def ended_by(error: Exception, monkeypatch: pytest.MonkeyPatch) -> Result:
    module = ModuleType("failing_command")

    @click.command()
    def command() -> None:
        raise error

    module.command = command  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return CliRunner().invoke(LazyGroup(lazy={"fail": (module.__name__, "Fail.")}), ["fail"])


@pytest.mark.parametrize("error", [TimeoutError(), RESET, TopicError("")])
def test_a_command_never_ends_with_an_empty_sentence(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = click.ClickException("")
    refused.__cause__ = error
    for ending in (error, refused):
        result = ended_by(ending, monkeypatch)
        assert result.exit_code == 1
        assert f"Error: {type(error).__name__} in {__file__}" in result.output
