"""Follows the topics of a run, from a thread of its own, and keeps its figures."""

import time
from typing import Final

from pipeline.demo.figures import RunFigures
from pipeline.kafka.cluster.clients import LATE_FETCH_MS, late_fetch_config
from pipeline.kafka.readers.follower import TopicFollower
from pipeline.replay.watch import Watch
from pipeline.settings import Settings
from schemas.topics import ALERTS, DEAD_LETTERS, DECISIONS, LABELS, MODELS, Topic

WAIT_S: Final = 0.05
"""Longest wait for a decision before the other topics are looked at; a decision ends it at once."""


class MonitorFailed(RuntimeError):
    """The monitor could not go on; its figures are not complete."""


class Monitor(Watch):
    """Reads what the pipeline commits, from the moment of its making, into `RunFigures`.

    A latency is taken when the decision is handed over by the client, that is after its transaction has been
    committed and the record has crossed the network, as for any consumer that reads committed records only.
    """

    def __init__(self, bootstrap: str, settings: Settings, figures: RunFigures) -> None:
        super().__init__("monitor")
        self._figures = figures

        def tail(topic: Topic, late_ms: int = 0) -> TopicFollower:
            fetch = late_fetch_config(late_ms, settings)
            return TopicFollower(bootstrap, settings, topic, fetch=fetch).start_at_end()

        self._decisions = tail(DECISIONS)
        # Decisions are timed; what else there is to show may come a little later.
        self._others = [
            (tail(topic, LATE_FETCH_MS), enter)
            for topic, enter in (
                (LABELS, figures.label),
                (ALERTS, figures.alert),
                (MODELS, figures.model),
                (DEAD_LETTERS, figures.dead_letter),
            )
        ]

    def check(self) -> None:
        """Raise ``MonitorFailed`` if the thread has ended with an error."""
        try:
            super().check()
        except Exception as error:
            raise MonitorFailed(f"following the topics failed: {error}") from error

    def step(self) -> float:
        """Poll all topics once."""
        self._take_in()
        return 0.0

    def end(self) -> None:
        """Take in what is there, and close the consumers."""
        try:
            while self._take_in():
                pass
        finally:
            for tail in (self._decisions, *(tail for tail, _ in self._others)):
                tail.close()

    def _take_in(self) -> bool:
        values = self._decisions.poll_values(WAIT_S)
        now_s = time.monotonic()
        for value in values:
            self._figures.decision(value, now_s)
        found = bool(values)
        for tail, enter in self._others:
            others = tail.poll_values(0)
            for value in others:
                enter(value)
            found = found or bool(others)
        return found
