"""Calls that may never come back."""

import threading
from collections.abc import Iterator

import pytest

from pipeline.kafka.cluster.call_thread import CallThread, CallTimedOut


@pytest.fixture
def waited() -> list[None]:
    return []


@pytest.fixture
def thread(waited: list[None]) -> Iterator[CallThread]:
    made = CallThread("card", lambda: waited.append(None))
    yield made
    made.end()


def test_what_a_call_gives_comes_back(thread: CallThread) -> None:
    assert [thread.call("count", lambda number=number: number + 1) for number in range(3)] == [1, 2, 3]


def test_what_a_call_raises_is_raised_where_it_was_made(thread: CallThread) -> None:
    def fail() -> None:
        raise ValueError("as it was")

    with pytest.raises(ValueError, match="as it was"):
        thread.call("fail", fail)
    assert thread.call("go on", lambda: "after it") == "after it"


def test_a_call_that_does_not_come_back_is_given_up(thread: CallThread, waited: list[None]) -> None:
    for_ever = threading.Event()
    with pytest.raises(CallTimedOut, match=r"card: commit has not come back for 0 s"):
        thread.call("commit", for_ever.wait, timeout_s=0.3)
    assert waited
    for_ever.set()
