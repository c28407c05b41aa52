"""The online model behind an engine: taught by what transactions turn out to be, published by the clock of events."""

import dataclasses
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.backtest.feedback import Feedback
from pipeline.backtest.order import Chunk
from pipeline.engine.decisions import Decisions
from pipeline.engine.feedback import FeedbackOptions
from pipeline.engine.models import ActiveModels
from pipeline.features.catalogue import FEATURES
from pipeline.scoring.layer_inputs import SOURCE_FEATURES
from pipeline.scoring.river_factory import new_learner
from pipeline.scoring.river_learner import LayerLearner
from pipeline.scoring.river_model import RiverLearner

Partitions = Callable[[pa.Array], NDArray[np.int64]]
"""From names to the partitions that they belong to."""


class Learning(NamedTuple):
    """How the online model learns from what transactions turn out to be."""

    options: FeedbackOptions
    publish_every_us: int
    """A version is published, and scores from then on, whenever event time passes a multiple of this since 1970."""
    learner: RiverLearner | None = None
    """Goes on with this one, which belongs to the models that score; a new one where there is none."""
    next_offset: int = 0
    """How many examples it has been given."""


class Periods:
    """The clock of events by which what was learned is published."""

    def __init__(self, every_us: int) -> None:
        self._every_us = every_us
        self._newest_us = 0
        self._period: int | None = None

    def parts(self, chunk: Chunk) -> Iterator[tuple[Chunk, bool]]:
        """The chunk in parts, and whether a period begins with the part's first transaction."""
        newest_us = np.maximum.accumulate(np.append(self._newest_us, chunk.transactions.event_time_us))[1:]
        periods = newest_us // self._every_us
        if self._period is None:
            self._period = int(periods[0]) if len(periods) else None
        starts = chunk.position[np.flatnonzero(np.diff(periods, prepend=self._period or 0))]
        for first, end in pairwise([0, *starts.tolist(), len(chunk)]):
            if first < end or first in starts:
                yield chunk.between(first, end), first in starts
        if len(periods):
            self._newest_us, self._period = int(newest_us[-1]), int(periods[-1])


class Teacher:
    """The feedback and the learn agent behind an engine."""

    def __init__(self, models: ActiveModels, learning: Learning, partitions: Partitions) -> None:
        self.models = models
        """What scores: the version that was published last."""
        self._partitions = partitions
        self._learner = learning.learner or new_learner(models.lightgbm.version)
        # The default layer learns from a few features only.
        kept = SOURCE_FEATURES if isinstance(self._learner, LayerLearner) else FEATURES
        self._feedback = Feedback(learning.options, kept)
        self._next_offset = self._published_offset = learning.next_offset

    def learn(self, chunk: Chunk, decisions: Decisions) -> None:
        """Learn what the decisions and labels of a part of a chunk tell."""
        before = self._feedback.counts.copy()
        examples = self._feedback.examples(chunk, decisions, self._partitions(chunk.labels.card_id))
        decisions.feedback.update(self._feedback.counts - before)
        if examples:
            self._learner.learn_examples(examples)
            self._next_offset += len(examples)

    def publish(self) -> None:
        """Score by all that was learned so far."""
        if self._published_offset != self._next_offset:
            self._published_offset = self._next_offset
            self.models = dataclasses.replace(self.models, river=self._learner.snapshot(self._next_offset))
