"""Prequential evaluation: how well each model ranked and rated transactions before it learned what they were."""

from collections.abc import Iterable
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.scoring.blend import sigmoid
from pipeline.scoring.kinds import WITH_LOG_ODDS
from pipeline.scoring.training_updates import TARGETS
from schemas.messages import Example

MODELS: Final = (*(kind.name for _, kind in WITH_LOG_ODDS), "blend")
WINDOW: Final = 10_000
"""Examples that are looked back upon."""
_CERTAIN: Final = float(np.finfo(float).eps)
"""Distance from 0 and 1 within which a probability is not taken for the log loss."""


class ScoreMeasures(NamedTuple):
    """Measures of one model's scores."""

    auc: float | None
    """Area under the ROC curve; None where one of the two classes is missing."""
    log_loss: float
    """Mean of -log(probability of what the transaction was)."""


class Prequential:
    """The newest labelled examples, with the scores as served.

    A decision was made before its label was known, so that its scores are of models which had not learned it. The first
    label of a transaction counts, with the weight of its example; what is held and a rule's label do not.

    Args:
        window: Examples that are kept.
    """

    def __init__(self, window: int = WINDOW) -> None:
        self._rows = np.empty((window, 2 + len(MODELS)))
        self._next = 0
        self.examples = 0
        """Examples that were taken in."""

    def add(self, examples: Iterable[Example]) -> None:
        """Take in examples."""
        for example in examples:
            if example.label not in TARGETS or example.revision or example.held or example.label_source == "rule":
                continue
            logits = [getattr(example, kind.log_odds) for _, kind in WITH_LOG_ODDS]
            logits = [example.logit if logit is None else logit for logit in logits]
            self._rows[self._next] = (TARGETS[example.label], example.weight, *logits, example.score)
            self._next = (self._next + 1) % len(self._rows)
            self.examples += 1

    def figures(self) -> dict[str, ScoreMeasures]:
        """Return the figures by model; empty without examples."""
        rows = self._rows[: min(self.examples, len(self._rows))]
        if not len(rows):
            return {}
        fraud, weight = rows[:, 0] > 0, rows[:, 1]
        scores = (*(sigmoid(rows[:, column]) for column in range(2, rows.shape[1] - 1)), rows[:, -1])
        return {
            name: ScoreMeasures(weighted_auc(fraud, score, weight), log_loss(fraud, score, weight))
            for name, score in zip(MODELS, scores, strict=True)
        }


def weighted_auc(fraud: NDArray[np.bool_], score: NDArray[np.float64], weight: NDArray[np.float64]) -> float | None:
    """Return the area under the ROC curve, ties counting half; None where a class is missing. All of shape (n,).

    >>> weighted_auc(np.array([True, False, False]), np.array([0.5, 0.5, 0.1]), np.ones(3))
    0.75
    """
    _, level = np.unique(score, return_inverse=True)
    frauds = np.bincount(level, weight * fraud)
    others = np.bincount(level, weight * ~fraud)
    pairs = frauds.sum() * others.sum()
    below = np.cumsum(others) - others / 2
    return float(frauds @ below / pairs) if pairs else None


def log_loss(fraud: NDArray[np.bool_], score: NDArray[np.float64], weight: NDArray[np.float64]) -> float:
    """Return the weighted mean of -log(probability of what each row was).

    Args:
        fraud: Shape (n,): what each row was.
        score: Shape (n,): its probability of fraud, 0 to 1.
        weight: Shape (n,): 0 or more, above 0 together.
    """
    right = np.clip(np.where(fraud, score, 1.0 - score), _CERTAIN, 1.0)
    return float(-(weight @ np.log(right)) / weight.sum())
