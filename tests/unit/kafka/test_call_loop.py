"""Calls with a time limit on a loop of their own."""

import asyncio

import pytest

from pipeline.kafka.writers import call_loop
from pipeline.kafka.writers.call_loop import CallLoop


@pytest.mark.parametrize("turns", range(4))
def test_a_loop_closes_behind_a_call_that_ends_as_its_time_does(turns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_loop, "_LOOK_S", 0.0)

    async def call() -> None:
        for _ in range(turns):
            await asyncio.sleep(0)

    loop = CallLoop(lambda: None)
    for _ in range(3):
        loop.run("a call", call(), 10.0)
    loop.close([])
