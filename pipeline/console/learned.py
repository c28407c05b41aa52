"""Progress of a label: from when it counts, and which versions have learned it."""

import logging
from datetime import UTC, datetime, timedelta
from typing import Final

from pipeline.console.followed import Background, FollowedVersions, LearnedExample
from pipeline.console.views import LabelView, LearnedView
from pipeline.learning.labels import FRAUD, LEGITIMATE, source_rank, too_late
from pipeline.observability.error_text import explained
from pipeline.settings import Settings
from schemas.messages import Decision, Label

log = logging.getLogger(__name__)

POLL_S: Final = 0.1
AGAIN_S: Final = 2.0
"""Time after which brokers that did not answer are asked again."""
FIRST_S: Final = 5.0
"""Longest wait of the first question for what was there before."""
READ_S: Final = 5.0
WITHDRAWN: Final = "withdrawn"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class LabelProgress(Background):
    """Follows what is learned of labels."""

    def __init__(self, bootstrap: str, settings: Settings) -> None:
        super().__init__(bootstrap, "label progress", FIRST_S)
        self._settings = settings
        self._followed = FollowedVersions(bootstrap, settings, examples=True)
        self._failure: str | None = None

    def learned(self, label: LabelView, decision: Decision | None) -> LearnedView:
        """Return what became of a label.

        Args:
            label: The label.
            decision: Of its transaction; None where it is not known.
        """
        self._await_first()
        with self._lock:
            return self._view(label, decision)

    def _follow(self) -> None:
        followed = self._followed
        while not self._ending.is_set():
            self._deadline.begin(READ_S)
            try:
                with self._lock:
                    followed.poll(0.0, self._deadline)
                    followed.training_data(self._deadline)
                self._failure = None
            # Whatever it is, pages say so, and it is tried again.
            except Exception as error:
                before, self._failure = self._failure, explained(error) or repr(error)
                if self._failure != before:
                    log.warning("what is learned cannot be followed: %s", self._failure)
                self._ready.set()
                self._ending.wait(AGAIN_S)
            else:
                if followed.caught_up:
                    self._ready.set()
                self._ending.wait(POLL_S)
        followed.close()

    def _view(self, view: LabelView, decision: Decision | None) -> LearnedView:
        label, known_at = view.label, _EPOCH + timedelta(microseconds=view.known_us)
        event_time = None if decision is None else decision.event_time
        counts = f"Counts since {known_at:%Y-%m-%d %H:%M} UTC."
        if late := too_late(event_time, known_at, self._settings.label_grace_days):
            return LearnedView(view.known_us, late, None, None, late)
        if not source_rank(label.source):
            return LearnedView(view.known_us, None, None, None, "A rule's label is for people: no model learns it.")
        if not view.holds:
            return LearnedView(
                view.known_us, None, None, None, f"{counts} Another label of the transaction holds, and is learned."
            )
        example = self._followed.example(label.transaction_id, label.card_id)
        river = self._learned_by(label, example)
        lightgbm = None if event_time is None else self._trained_on(label, event_time, view.known_us)
        texts = [counts, self._river_text(view, example, river), _lightgbm_text(label, lightgbm)]
        if self._failure is not None:
            texts.append(f"The newest is missing: {self._failure}.")
        return LearnedView(view.known_us, None, river, lightgbm, " ".join(filter(None, texts)))

    def _learned_by(self, label: Label, example: LearnedExample | None) -> str | None:
        if example is None or example.held or example.label != _example_label(label):
            return None
        return self._followed.river_behind(example.offset)

    def _trained_on(self, label: Label, event_time: datetime, known_us: int) -> str | None:
        data = self._followed.training_data()
        event_us = (event_time - _EPOCH) // timedelta(microseconds=1)
        return data.version if data is not None and data.holds(event_us, known_us, label.label) else None

    def _river_text(self, view: LabelView, example: LearnedExample | None, river: str | None) -> str:
        label = view.label
        if river is not None:
            verb = "has learned it" if label.label in (FRAUD, LEGITIMATE) else "has unlearned what was known"
            return f"The online model {verb} (version {river})."
        if example is not None and example.held and example.label == _example_label(label):
            return "It is held as part of a surge of labels, until somebody runs `fraud-pipeline models release`."
        if self._followed.history.frozen:
            return "Learning is frozen: the online model learns it afterwards."
        if example is None and view.known_us < self._followed.examples_since_us:
            return "What the online model learned at that time is not looked at any more."
        return "The online model has not learned it yet."


def _lightgbm_text(label: Label, lightgbm: str | None) -> str:
    if label.label not in (FRAUD, LEGITIMATE):
        return ""
    if lightgbm is not None:
        return f"LightGBM version {lightgbm} was trained with it."
    return "LightGBM learns it with its next version."


def _example_label(label: Label) -> str:
    return label.label if label.label in (FRAUD, LEGITIMATE) else WITHDRAWN
