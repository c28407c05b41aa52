"""The protocol of online models: to the score agent an immutable scorer, to the learn agent a learner."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from pipeline.scoring.kinds import Scorer
from schemas.messages import Example


class RiverModel(Scorer, Protocol):
    """An immutable scorer on top of whichever LightGBM version scores.

    Its version is ``<first digits of the configuration's digest>@<offset in examples>``.
    """


class RiverLearner(Protocol):
    """A learner of ``examples``, in the order of their log."""

    @property
    def sources(self) -> Sequence[str]:
        """The features that it reads of an example."""
        ...

    def learn_examples(self, examples: Iterable[Example]) -> Mapping[str, int]:
        """Learn examples in order; counts by what became of them (fields of `UpdateCounts`)."""
        ...

    def snapshot(self, examples_offset: int) -> RiverModel:
        """An immutable scorer of what has been learned; ``examples_offset`` becomes part of its version."""
        ...

    def save(self) -> bytes:
        """All that it has learned, for `go_back` in this process; it may hold code."""
        ...

    def go_back(self, saved: bytes) -> None:
        """Be as it was at `save`."""
        ...

    def numbers(self) -> bytes | None:
        """Return the result of `save` where that is data without code, which may be kept anywhere; else None."""
        ...
