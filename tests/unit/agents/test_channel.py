"""Batches that follow each other are worked on in one turn of the agent's thread; then the event loop is asked."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import faust
import pytest

from agents import loop
from agents.channel import BatchChannel
from agents.loop import AgentLoop
from pipeline.kafka.records.batch import Batch, make_batch
from tests.helpers.waiting import TIMEOUT_S


class Source(AgentLoop):
    """Turns over given batches, without a session; ``worked`` is called with how many were."""

    def __init__(self, batches: list[Batch | None], worked: Callable[[int], None] = lambda _: None) -> None:
        self._stopping = False
        self.batches, self._tell = batches, worked
        self.worked: list[Batch] = []
        self.threads: set[str] = set()
        self.closed = False

    def poll(self) -> Batch | None:
        return self.batches.pop(0)

    def work(self, batch: Batch) -> None:
        self.threads.add(threading.current_thread().name)
        self.worked.append(batch)
        self._tell(len(self.worked))

    def stop(self) -> None:
        self._stopping = True

    def close(self) -> None:
        self.closed = True


def batches(count: int) -> list[Batch]:
    return [make_batch([], None) for _ in range(count)]


def on_a_channel(source: Source, steps: Callable[[BatchChannel], Any]) -> Any:
    async def run() -> Any:
        channel = BatchChannel(faust.App("turns", broker="kafka://", store="memory://"), lambda: source, "card")
        try:
            return await asyncio.wait_for(steps(channel), TIMEOUT_S)
        finally:
            if not source.closed:
                await channel.close()

    return asyncio.run(run())


def test_what_follows_a_batch_at_once_is_worked_on_in_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "TURN_S", 60.0)
    first, second, third, fourth = batches(4)
    source = Source([None, first, second, third, None, fourth, None])

    async def steps(channel: BatchChannel) -> list[Batch]:
        asked = []
        for _ in range(2):
            asked.append(await anext(channel))
            await channel.work(asked[-1])
        return asked

    assert on_a_channel(source, steps) == [first, fourth]
    assert source.worked == [first, second, third, fourth]
    assert len(source.threads) == 1
    assert threading.current_thread().name not in source.threads


def test_a_turn_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "TURN_S", 0.0)
    first, second = batches(2)
    source = Source([second])
    on_a_channel(source, lambda channel: channel.work(first))
    assert source.worked == [first]
    assert source.batches == [second]


def test_a_turn_ends_with_the_batch_during_which_the_channel_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "TURN_S", 60.0)
    begun, go_on = threading.Event(), threading.Event()

    def worked(_: int) -> None:
        begun.set()
        assert go_on.wait(TIMEOUT_S)

    first, second = batches(2)
    source = Source([second], worked)

    async def steps(channel: BatchChannel) -> None:
        work = asyncio.create_task(channel.work(first))
        await asyncio.to_thread(begun.wait, TIMEOUT_S)
        closing = asyncio.create_task(channel.close())
        await asyncio.sleep(0)  # the channel has heard of it before the batch ends
        go_on.set()
        await closing
        assert not work.done()
        work.cancel()

    on_a_channel(source, steps)
    assert source.worked == [first]
    assert source.closed
