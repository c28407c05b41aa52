"""Sensitivity of a training to wrong labels: the same training again, on labels that were spoilt on purpose."""

from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.learning.sampling import sample_positions
from pipeline.training.metrics import average_precision, card_precision
from schemas.times import US_PER_DAY

WRONG_SHARES: Final = (0.01, 0.05, 0.1)
POISONED_DAYS: Final = 21
POISONED_SHARE: Final = 1 / 3
"""Share of the smallest amounts of the newest days that a poisoned source calls fraud."""
_WRONG_SAMPLE: Final = "wrong-label"


def sensitivity(
    amount: NDArray[np.float64],
    fraud: NDArray[np.bool_],
    identity: NDArray[np.int64],
    event_time_us: NDArray[np.int64],
    card: NDArray[np.int64],
    checked: NDArray[np.intp],
    scored: Callable[[NDArray[np.bool_]], NDArray[np.float64]],
) -> list[dict[str, Any]]:
    """Return how a training does on the true labels of its validation period, after it has learned wrong ones.

    Args:
        amount: Amounts, shape (n,).
        fraud: True labels, shape (n,).
        identity: First words of `pipeline.engine.records.columns.digests`, by which labels are spoilt; shape (n,).
        event_time_us: Shape (n,).
        card: Cards as integers from 0 on, shape (n,).
        checked: Rows of the validation period.
        scored: Trains on some labels, shape (n,), and returns scores of the validation period, shape (len(checked),).

    Returns:
        For each kind of wrong labels, "none" first: the number of them, average precision and card precision at 100.
    """
    found = []
    for labels, spoilt in _spoilt(amount, fraud, identity, event_time_us):
        score, truth = scored(spoilt), fraud[checked]
        found.append(
            {
                "labels": labels,
                "wrong": int(np.count_nonzero(spoilt != fraud)),
                "average_precision": average_precision(truth, score, np.ones(len(checked))),
                "card_precision_100": card_precision(truth, score, event_time_us[checked], card[checked]),
            }
        )
    return found


def _spoilt(
    amount: NDArray[np.float64],
    fraud: NDArray[np.bool_],
    identity: NDArray[np.int64],
    event_time_us: NDArray[np.int64],
) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Yield the name of each kind of wrong labels, and all labels with them.

    A share of the frauds is called legitimate, and as many legitimate transactions fraud: with a share of all labels
    the wrong frauds would be a multiple of the true ones.
    """
    position = sample_positions(identity.astype(np.uint64), _WRONG_SAMPLE)
    others = max(int(np.count_nonzero(~fraud)), 1)
    yield "none", fraud
    for share in WRONG_SHARES:
        wrong = position < np.where(fraud, share, share * np.count_nonzero(fraud) / others)
        yield f"{share:.0%} of the frauds, and as many others", fraud ^ wrong
    recent = event_time_us >= event_time_us.max() - POISONED_DAYS * US_PER_DAY
    small = amount <= np.quantile(amount, 0.25)
    called_fraud = recent & small & (position < POISONED_SHARE)
    yield f"a source that calls a third of the smallest amounts of {POISONED_DAYS} days fraud", fraud | called_fraud
