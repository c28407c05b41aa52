"""Training of an online model: who learns, which examples, and a bound on how far one of them may move it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.features.feature_set import is_comparable
from pipeline.scoring.kinds import Scorer
from pipeline.scoring.river_layer import UpdateCounts
from schemas.messages import Example

TARGETS = {"fraud": True, "legitimate": False, "presumed_legitimate": False}
_WITHDRAWN: Final = "withdrawn"
MOST_UNDONE: Final = 5.0
"""Log-odds by which undoing a label moves a transaction at most: where much was learned since, its own heavy step may
be long gone."""


class RiverLearner(Protocol):
    """An online model while it learns ``examples``, in the order of their log."""

    @property
    def sources(self) -> Sequence[str]:
        """The features that it reads of an example."""

    def learn_examples(self, examples: Iterable[Example]) -> Mapping[str, int]:
        """Learn examples in order; counts by what became of them (fields of `UpdateCounts`)."""

    def snapshot(self, examples_offset: int) -> Scorer:
        """An immutable scorer of what has been learned; ``examples_offset`` becomes part of its version."""

    def save(self) -> bytes:
        """All that it has learned, for `go_back` in this process; it may hold code."""

    def go_back(self, saved: bytes) -> None:
        """Be as it was at `save`; raises `ModelError` where that was another learner."""


class Update(NamedTuple):
    """The training update that an example makes: it undoes one label, learns another, or both."""

    example: Example
    former: bool | None
    """True if the label that is undone was fraud; None where nothing is undone."""
    former_weight: float
    target: bool | None
    """True if the label that is learned is fraud; None where none is learned."""
    weight: float


def choose(examples: Iterable[Example]) -> tuple[list[Update], dict[str, int]]:
    """Return the updates that examples ask for, in order, and how many became what (by the fields of `UpdateCounts`).

    Features of another kernel mean something else; a rule's label would train the rule.
    """
    chosen: list[Update] = []
    counts = dict.fromkeys(UpdateCounts.__struct_fields__, 0)
    for example in examples:
        if example.label_source == "rule":
            counts["rule"] += 1
        elif example.label not in TARGETS and example.label != _WITHDRAWN:
            counts["unlabelled"] += 1
        elif not is_comparable(example.versions.kernel):
            counts["other_kernel"] += 1
        elif example.held:
            counts["held"] += 1
        else:
            weight = example.weight if example.online_weight is None else example.online_weight
            former = None if example.former is None else TARGETS.get(example.former)
            target = TARGETS.get(example.label) if weight > 0 else None
            if former is None and target is None:
                counts["allowed_for"] += 1
                continue
            counts["learned" if former is None else "corrections"] += 1
            chosen.append(Update(example, former, example.former_weight, target, weight))
    return chosen, counts


def add_counts(total: UpdateCounts, counts: Mapping[str, int]) -> UpdateCounts:
    """The sum."""
    return msgspec.structs.replace(total, **{name: getattr(total, name) + n for name, n in counts.items()})


def example_sources(features: Sequence[Mapping[str, float | None]], names: Sequence[str]) -> NDArray[np.float64]:
    """Return features by name as columns, shape (n, len(names)); one that is absent or null is NaN."""
    sources = np.full((len(features), len(names)), np.nan)
    for row, named in zip(sources, features, strict=True):
        row[:] = [np.nan if (value := named.get(name)) is None else value for name in names]
    return sources


def importance_aware_weight(logit: float, target: bool, weight: float, rate: float, squared_norm: float) -> float:
    """The weight at which one gradient step does what ``weight`` infinitely small steps in a row would do.

    A plain step multiplies the gradient by the weight, and so overshoots the more, the heavier the update; the limit
    of many small steps never moves the prediction past its target. Karampatziakis and Langford, "Online Importance
    Weight Aware Updates" (2011), logistic loss: with z the log-odds towards the target, c = rate x weight x |x|^2, the
    new z' solves z' + exp(z') = z + exp(z) + c. It is at most ``weight``, and nearly that for a small step.

    A negative weight undoes the step of the positive one: from z' it leads back to z, where nothing else was learned in
    between. It moves the log-odds by no more than c, and by no more than `MOST_UNDONE`.

    >>> round(importance_aware_weight(0.0, True, 1.0, 1e-9, 1.0), 6)
    1.0
    >>> importance_aware_weight(0.0, True, 1000.0, 0.1, 1.0) < 100
    True
    >>> importance_aware_weight(1.0, True, -5.0, 0.1, 1.0) < 0
    True
    """
    # Beyond 200 nothing changes any more, and exp stays far from overflow.
    z = max(-200.0, min(200.0, logit if target else -logit))
    reach = max(rate * weight * squared_norm, -MOST_UNDONE)
    if reach == 0.0:
        return 0.0
    # The step d solves d + exp(z) x (exp(d) - 1) = reach. The left side is convex and rises, so that Newton's
    # method from the right of the root falls onto it; both starts lie there, because each term alone is at most reach.
    # So does 0 for a negative reach.
    # For z > 0 the equation is divided by exp(z), so that the small term is not lost in the large one.
    outer, inner = (math.exp(-z), 1.0) if z > 0.0 else (1.0, math.exp(z))
    step = min(reach, math.log1p(reach * math.exp(-z))) if reach > 0.0 else 0.0
    for _ in range(300):
        excess = outer * (step - reach) + inner * math.expm1(step)
        correction = excess / (outer + inner * math.exp(step))
        step -= correction
        if abs(correction) <= 1e-14 * abs(step):
            break
    gradient = 1.0 / (1.0 + math.exp(z))
    used = step / (rate * squared_norm * gradient)
    return min(weight, used) if weight > 0.0 else used
