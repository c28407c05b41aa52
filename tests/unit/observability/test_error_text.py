"""No program ends without a word of what went wrong and where."""

import errno
import signal
import threading
from collections.abc import Callable

import click
import pytest
from click.testing import CliRunner, Result

from pipeline.cli import LazyGroup
from pipeline.commands.progress import interrupts
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


def group_of(function: Callable[[], None]) -> click.Group:
    """Return the program with one command."""
    group = LazyGroup(lazy={})
    group.get_command = lambda ctx, name: click.Command(name, callback=function)  # type: ignore[method-assign, assignment]
    return group


def ended_by(error: Exception) -> Result:
    def failing() -> None:
        raise error

    return CliRunner().invoke(group_of(failing), ["fail"])


@pytest.mark.parametrize("error", [TimeoutError(), RESET, TopicError("")])
def test_a_command_never_ends_with_an_empty_sentence(error: Exception) -> None:
    refused = click.ClickException("")
    refused.__cause__ = error
    for ending in (error, refused):
        result = ended_by(ending)
        assert result.exit_code == 1
        assert f"Error: {type(error).__name__} in {__file__}" in result.output


@pytest.mark.parametrize("error", [TopicError("the topic is gone"), click.ClickException("the topic is gone")])
@pytest.mark.parametrize("stopped", [False, True])
def test_an_error_after_ctrl_c_has_its_exit_code(error: Exception, stopped: bool) -> None:
    error.__cause__ = KeyError("of a client")
    stop = threading.Event()

    def failing() -> None:
        with interrupts(stop):
            if stopped:
                signal.raise_signal(signal.SIGINT)
            raise error

    result = CliRunner().invoke(group_of(failing), ["fail"])
    assert result.exit_code == (130 if stopped else 1)
    assert result.output == "Error: the topic is gone\n"


def test_an_error_of_a_service_that_is_to_end_keeps_its_exit_code() -> None:
    def failing() -> None:
        with interrupts(threading.Event(), signal.SIGUSR1):
            signal.raise_signal(signal.SIGUSR1)
            raise TopicError("the topic is gone")

    result = CliRunner().invoke(group_of(failing), ["fail"])
    assert (result.exit_code, result.output) == (1, "Error: the topic is gone\n")
