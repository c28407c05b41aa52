"""A question to brokers ends: with an answer, with the last error, or as its asker wants it to."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import pytest
from aiokafka.errors import NotLeaderForPartitionError, OffsetOutOfRangeError, TopicAuthorizationFailedError

from pipeline.kafka.cluster.clients import consumer_config
from pipeline.kafka.records.raw_fetch import Connections, FetchRefused, FetchUnanswered, Wanted, ask

CONFIG: Final = consumer_config("127.0.0.1:1", "nobody", settings=None)


def failing(*errors: Exception) -> Callable[[Connections], Any]:
    """A question that fails with each of ``errors`` and is then answered."""
    left = list(errors)

    async def question(_: Connections) -> str:
        if left:
            raise left.pop(0)
        return "an answer"

    return question


def test_what_passes_is_asked_again() -> None:
    question = failing(NotLeaderForPartitionError(), ConnectionRefusedError(), TimeoutError())
    assert ask(CONFIG, question, lambda: None) == "an answer"


@pytest.mark.parametrize("error", [OffsetOutOfRangeError(), TopicAuthorizationFailedError("t")])
def test_what_does_not_pass_is_the_brokers_own_word(error: Exception) -> None:
    with pytest.raises(FetchRefused):
        ask(CONFIG, failing(error), lambda: None)


def test_nobody_waits_for_ever_for_brokers_that_are_away() -> None:
    with pytest.raises(FetchUnanswered, match="no broker has answered for 0 s"):
        ask(CONFIG, lambda brokers: brokers.fetch(Wanted(("t", 0), 0)), lambda: None, 0.3)


def test_whoever_ends_meanwhile_says_so() -> None:
    def waiting() -> None:
        raise InterruptedError("the worker ends")

    with pytest.raises(InterruptedError):
        ask(CONFIG, lambda brokers: brokers.fetch(Wanted(("t", 0), 0)), waiting)


def test_a_notebook_may_ask() -> None:
    async def cell() -> str:
        return str(ask(CONFIG, failing(), lambda: None))

    assert asyncio.run(cell()) == "an answer"
