"""The batch channel: a Faust channel whose items are batches of Kafka records, formed when the agent asks.

Faust pays its price per event; here one event carries up to thousands of records, and the batches that follow it within
a turn are worked on before the event loop is asked again. Reading, working and committing run on one thread of the
agent's own, so that the event loop only passes the baton, a batch is never formed before the agent is free, and a
rebalance cannot come between reading a batch and committing it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import faust
from faust.types import AppT

from agents.loop import AgentLoop
from pipeline.kafka.cluster.errors import Stopped
from pipeline.kafka.records.batch import Batch
from schemas.topics import Topic

T = TypeVar("T")


class BatchChannel(faust.Channel):  # type: ignore[misc]
    """Iterating yields an agent's batches; ``work`` processes one, and those behind it, in the thread that read it."""

    def __init__(
        self, app: AppT, new_loop: Callable[[], AgentLoop], name: str, reads: Sequence[Topic] = (), help: str = ""
    ) -> None:
        super().__init__(app)
        self.name, self.help = name, help
        self._reads = reads
        self._new_loop = new_loop
        self._loop: AgentLoop | None = None
        self._closing = False
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"agent-{name}")

    def get_topic_name(self) -> str:
        """Return the topics that the agent reads, without prefix, for Faust's list of agents."""
        return ", ".join(topic.name for topic in self._reads)

    def clone(self, *, is_iterator: bool | None = None, **kwargs: Any) -> "BatchChannel":
        """This channel: it has one reader, its agent."""
        del is_iterator, kwargs
        return self

    def derive(self, **kwargs: Any) -> "BatchChannel":
        """This channel."""
        del kwargs
        return self

    def __aiter__(self) -> "BatchChannel":
        return self

    async def __anext__(self) -> Batch:
        while True:
            batch = await self._unless_closing(lambda: self._opened().poll())
            if batch is not None:
                return batch

    async def work(self, batch: Batch) -> None:
        """Process a batch and commit its outputs with its offsets; then the same with what follows within a turn."""
        await self._unless_closing(lambda: self._opened().turn(batch))

    async def close(self) -> None:
        """Finish the call that runs, leave the group, and end the thread."""
        self._closing = True
        if self._loop is not None:
            self._loop.stop()
        try:
            await self._call(self._close)
        finally:
            self._thread.shutdown(wait=False)

    async def _unless_closing(self, function: Callable[[], T]) -> T:
        """Call ``function`` on the channel's thread; once the channel closes, wait to be cancelled instead.

        The agent must not end by itself: Faust would take that for a crash and start it again.
        """
        if not self._closing:
            try:
                result = await self._call(function)
            except Stopped:
                # What it waited for will not come any more; nothing of the batch is committed.
                if not self._closing:
                    raise
            else:
                if not self._closing:
                    return result
        waiting: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        return await waiting

    async def _call(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def _close(self) -> None:
        # On the agent's thread, where a loop may have been made since.
        if self._loop is not None:
            self._loop.close()

    def _opened(self) -> AgentLoop:
        if self._loop is None:
            self._loop = self._new_loop()
        return self._loop


def register(app: faust.App, channel: BatchChannel) -> None:
    """Make a Faust agent of a channel: each batch that it yields is worked on in the channel's thread."""

    async def agent(batches: AsyncIterator[Batch]) -> None:
        async for batch in batches:
            await channel.work(batch)

    # Faust shows it as the agent's help.
    agent.__doc__ = channel.help
    app.agent(channel, name=channel.name)(agent)
