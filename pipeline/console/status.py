"""The line at the top (rate, lag, alerts against the budget, precision, versions, dead letters), and labels learned."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

from pipeline.console.followed import Deadline, FollowedVersions
from pipeline.console.learned import learned_view
from pipeline.console.views import LabelView, LearnedView, StatusView, StoreFigures
from pipeline.kafka.cluster.clients import admin_client
from pipeline.kafka.cluster.log_offsets import first_offsets, last_offsets, partition_numbers
from pipeline.observability.error_text import explained
from pipeline.settings import Settings
from schemas.messages import Decision
from schemas.topics import DEAD_LETTERS, TRANSACTIONS, Topic

log = logging.getLogger(__name__)

LOOK_S: Final = 1.0
RATE_S: Final = 10.0
"""Time over which the rate is taken."""
POLL_S: Final = 0.1
READ_S: Final = 3.0
"""Time without an answer after which the brokers count as away."""
FIRST_S: Final = 5.0
"""Longest wait for the first figures."""
_NOTHING: Final = StatusView(0.0, None, 0, None, None, 0, {}, None, None)


class ClusterView:
    """The line at the top and the progress of labels, by one thread that begins at the first question.

    Its methods may be called from any thread. After the first look, `figures` does not wait.

    Args:
        bootstrap: Addresses of the brokers.
        settings: Settings of the console.
        cases: Returns the newest figures of cases.
    """

    def __init__(self, bootstrap: str, settings: Settings, cases: Callable[[], StoreFigures]) -> None:
        self._settings, self._cases = settings, cases
        self._client = admin_client(bootstrap, settings=settings)
        self._deadline, self._followed = Deadline(bootstrap), FollowedVersions(bootstrap, settings)
        self._ending, self._looked, self._caught_up = self._deadline.ending, threading.Event(), threading.Event()
        self._starting, self._following = threading.Lock(), threading.Lock()
        self._thread: threading.Thread | None = None
        self._counts = deque[tuple[float, int]]()
        self._view = _NOTHING

    def figures(self) -> StatusView:
        """Return the newest figures; with a sentence where brokers do not answer."""
        self._await(self._looked)
        return self._view

    def learned(self, label: LabelView, decision: Decision | None) -> LearnedView:
        """Return what became of a label; ``decision`` is that of its transaction, where it is known."""
        self._await(self._caught_up)
        with self._following:
            view = learned_view(self._followed, self._settings.label_grace_days, label, decision)
        failure = self._view.failure
        return view if failure is None else view._replace(sentence=f"{view.sentence} The newest is missing: {failure}")

    def close(self) -> None:
        """Stop following."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join()

    def _await(self, first: threading.Event) -> None:
        with self._starting:
            if self._thread is None and not self._ending.is_set():
                self._thread = threading.Thread(target=self._follow, name="cluster view", daemon=True)
                self._thread.start()
        first.wait(FIRST_S)

    def _follow(self) -> None:
        looked_s = float("-inf")
        while not self._ending.is_set():
            self._deadline.begin(READ_S)
            looks = time.monotonic() - looked_s >= LOOK_S
            try:
                if looks:
                    looked_s, found = time.monotonic(), self._cases()
                    self._view = self._of_cases(self._view, found)
                with self._following:
                    self._followed.poll(0.0, self._deadline)
                    self._followed.training_data(self._deadline)
                if looks:
                    self._view = self._of_topics(self._view, found.source_ends)
            # Whatever it is, pages say so, and keep their figures.
            except Exception as error:
                sentence = explained(error) or repr(error)
                if self._view.failure is None:
                    log.warning("the line at the top is not up to date: %s", sentence)
                self._view = self._view._replace(failure=f"The topics cannot be followed: {sentence}.")
                self._caught_up.set()
                self._ending.wait(LOOK_S)
            if self._followed.caught_up:
                self._caught_up.set()
            self._looked.set()
            self._ending.wait(POLL_S)
        self._followed.close()

    def _of_cases(self, view: StatusView, found: StoreFigures) -> StatusView:
        now_s, counts = time.monotonic(), self._counts
        counts.append((now_s, found.decisions))
        while len(counts) > 2 and now_s - counts[1][0] >= RATE_S:
            counts.popleft()
        (first_s, first), (last_s, last) = counts[0], counts[-1]
        return view._replace(
            rate=max(0, last - first) / (last_s - first_s) if last_s > first_s else 0.0,
            alerts=found.alerts_last_day,
            labelled=found.labelled_alerts,
            precision=found.confirmed_alerts / found.labelled_alerts if found.labelled_alerts else None,
        )

    def _of_topics(self, view: StatusView, decided: Mapping[int, int]) -> StatusView:
        lag = None
        if decided:
            # Marks of producers' transactions and refused records count until a decision follows them.
            lag = sum(
                max(0, there.stop - decided.get(number, there.start)) for number, there in self._ranges(TRANSACTIONS)
            )
        return view._replace(
            lag=lag,
            budget=self._followed.budget(self._deadline),
            versions=self._followed.versions(),
            dead_letters=sum(len(there) for _, there in self._ranges(DEAD_LETTERS)),
            failure=None,
        )

    def _ranges(self, topic: Topic) -> list[tuple[int, range]]:
        """Return the offsets of each partition of a topic."""
        name = self._settings.topic(topic.name)
        partitions = [(name, number) for number in partition_numbers(self._client, name, self._deadline)]
        starts = first_offsets(self._client, partitions, self._deadline)
        ends = last_offsets(self._client, partitions, waiting=self._deadline)
        return [(number, range(starts[name, number], ends[name, number])) for _, number in partitions]
