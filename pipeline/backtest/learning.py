"""The online model behind an engine: taught by what transactions turn out to be, published by the clock of events."""

import dataclasses
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from pipeline.backtest.decisions import Decisions
from pipeline.backtest.engine import Engine
from pipeline.backtest.feedback import Feedback
from pipeline.backtest.order import Chunk
from pipeline.engine.feedback import FeedbackOptions
from pipeline.features.catalogue import FEATURES
from pipeline.scoring.layer_inputs import SOURCE_FEATURES
from pipeline.scoring.river_factory import new_learner
from pipeline.scoring.river_learner import LayerLearner
from pipeline.scoring.river_model import RiverLearner


class Learning(NamedTuple):
    """How the online model learns from what transactions turn out to be."""

    options: FeedbackOptions
    publish_every_us: int
    """A version is published, and scores from then on, whenever event time passes a multiple of this since 1970."""
    learner: RiverLearner | None = None
    """Goes on with this one, which belongs to the models that score; a new one where there is none."""
    next_offset: int = 0
    """How many examples it has been given."""


class Teacher:
    """The feedback and the learn agent behind an engine."""

    def __init__(self, engine: Engine, learning: Learning) -> None:
        self._engine, self._every_us = engine, learning.publish_every_us
        self._learner = learning.learner or new_learner(engine.models.lightgbm.version)
        # The default layer learns from a few features only.
        kept = SOURCE_FEATURES if isinstance(self._learner, LayerLearner) else FEATURES
        self._feedback = Feedback(learning.options, kept)
        self._next_offset = self._published_offset = learning.next_offset
        self._newest_us = 0
        self._period: int | None = None

    def between_publications(self, chunk: Chunk) -> Iterator[Chunk]:
        """The chunk in parts; what was learned is published before the first transaction of each period."""
        newest_us = np.maximum.accumulate(np.append(self._newest_us, chunk.transactions.event_time_us))[1:]
        periods = newest_us // self._every_us
        if self._period is None:
            self._period = int(periods[0]) if len(periods) else None
        starts = chunk.position[np.flatnonzero(np.diff(periods, prepend=self._period or 0))]
        for first, end in pairwise([0, *starts.tolist(), len(chunk)]):
            if first in starts:
                self._publish()
            if first < end:
                yield chunk.between(first, end)
        if len(periods):
            self._newest_us, self._period = int(newest_us[-1]), int(periods[-1])

    def learn(self, chunk: Chunk, decisions: Decisions) -> None:
        """Learn what the decisions and labels of a part of a chunk tell."""
        before = self._feedback.counts.copy()
        examples = self._feedback.examples(chunk, decisions, self._engine.partitions(chunk.labels.card_id))
        decisions.feedback.update(self._feedback.counts - before)
        if examples:
            self._learner.learn_examples(examples)
            self._next_offset += len(examples)

    def _publish(self) -> None:
        if self._published_offset != self._next_offset:
            self._published_offset = self._next_offset
            river = self._learner.snapshot(self._next_offset)
            self._engine.models = dataclasses.replace(self._engine.models, river=river)
