"""The thread that follows the topics into the console's database."""

import logging
import os
import threading
from collections.abc import Callable
from contextlib import closing
from typing import Final

from pipeline.console.store import CaseStore
from pipeline.kafka.readers.topics_follower import TopicsFollower
from pipeline.observability.error_text import explained
from pipeline.settings import Settings
from schemas.topics import ALERTS, CASE_EVENTS, DECISIONS, Topic

log = logging.getLogger(__name__)

POLL_S: Final = 0.2
NICENESS: Final = 10
"""Niceness of the thread that reads, and of its client's: on a full machine a pipeline beside it goes first."""
GATHER_S: Final = 0.1
"""Time for which records gather while no action waits for one."""
AGAIN_S: Final = 2.0
"""Time after which topics that could not be read are tried again."""


def read_topics(settings: Settings) -> list[Topic]:
    """Return the topics that a console reads."""
    return [CASE_EVENTS, ALERTS, *settings.topics_of_labels, DECISIONS]


class StoreThread(threading.Thread):
    """A thread that fills the database from the topics until it is stopped.

    Args:
        bootstrap: Addresses of brokers.
        settings: Settings of the console.
        store: The database.
        on_change: Called with the ids of the cases that were changed.
    """

    def __init__(
        self, bootstrap: str, settings: Settings, store: CaseStore, on_change: Callable[[frozenset[str]], None]
    ) -> None:
        super().__init__(name=f"console-{type(self).__name__}", daemon=True)
        self._brokers, self._settings, self._store, self._on_change = bootstrap, settings, store, on_change
        self._stopping = threading.Event()

    def stop(self) -> None:
        """End the thread, and wait until it has."""
        self._stopping.set()
        if self.is_alive():
            self.join()


class TopicsReader(StoreThread):
    """Applies records of the topics, as no other thread does; where that fails it says why, and tries again."""

    def __init__(
        self, bootstrap: str, settings: Settings, store: CaseStore, on_change: Callable[[frozenset[str]], None]
    ) -> None:
        super().__init__(bootstrap, settings, store, on_change)
        self.failure: BaseException | None = None
        """The error by which the topics cannot be read at the moment."""
        self.caught_up = threading.Event()
        """Set once every topic has been read to its end."""

    @property
    def failure_text(self) -> str | None:
        """A sentence where the topics cannot be read at the moment, or have not been read yet."""
        if self.failure is None:
            return None if self.caught_up.is_set() else "The cases are being read: the queue is not whole yet."
        return f"The topics cannot be read, and are tried again: {explained(self.failure) or self.failure!r}"

    def run(self) -> None:
        """Read until `stop`; pages keep the priority of the process."""
        own = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, own, max(NICENESS, os.getpriority(os.PRIO_PROCESS, own)))
        while not self._stopping.is_set():
            try:
                with closing(TopicsFollower(self._brokers, self._settings, read_topics(self._settings))) as follower:
                    self._follow(follower)
            # Whatever it is, the pages go on showing what was read, and say so.
            except Exception as error:
                if repr(error) != repr(self.failure):
                    log.warning(
                        "the console cannot read the topics, and tries again: %s", explained(error) or repr(error)
                    )
                self.failure = error
                self._stopping.wait(AGAIN_S)

    def _follow(self, follower: TopicsFollower) -> None:
        prefix = self._settings.topic_prefix
        cluster_id, topic_ids = follower.identities()
        known = self._store.begin({"cluster": cluster_id, "prefix": prefix, "topics": topic_ids})
        follower.start({(self._settings.topic(name), number): behind for (name, number), behind in known.items()})
        while not self._stopping.is_set():
            records = follower.poll(POLL_S)
            self.failure = None
            positions = {
                (name.removeprefix(prefix), number): behind
                for (name, number), behind in follower.taken_positions().items()
            }
            if not positions:
                continue
            changed = self._store.apply(records, positions, caught_up=follower.caught_up)
            if follower.caught_up:
                self.caught_up.set()
            if changed:
                self._on_change(changed)
            if follower.caught_up:
                # Few large batches cost the machine less than many small ones.
                self._store.awaited.wait(GATHER_S)
