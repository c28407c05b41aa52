"""Records of a version's validation period, small enough to be kept with it."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from pipeline.features.catalogue import KERNEL_VERSION
from pipeline.learning.sampling import sample_positions
from pipeline.training.cohorts import Split, TrainingSet
from pipeline.training.metrics import auc_roc, average_precision, card_precision
from pipeline.training.segments import outcomes_by_segment
from schemas.times import US_PER_DAY

TOP_CARDS: Final = 100
"""Cards a day of the card precision that is reported."""
SCORE_EDGES: Final = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.6, 0.9, 1.0)
"""Bins of the calibration table: frauds are rare, so that most scores are small."""
DAILY_UP_TO: Final = 14
"""Days of a validation period that is shown by days; a longer one is shown by weeks."""
WEEKS_UP_TO: Final = 62
"""Days up to which it is shown by weeks; a longer one is shown by months."""
BENCHMARK_FEATURES: Final = ("amount", "card_amount_to_regular", "merchant_unexplained_fraud_30d")
"""Features of the benchmark: what is spent, what the card usually spends, what is reported of the merchant."""


def measured(
    data: TrainingSet, split: Split, score: NDArray[np.float64], threshold: float, days: float
) -> dict[str, Any]:
    """Return the metrics of a version on the validation period.

    Args:
        data: Transactions.
        split: Has the rows of the period.
        score: Calibrated scores of the period, shape (k,).
        threshold: Score from which on there is an alert.
        days: Length of the period.
    """
    rows = split.validation
    fraud, weight = data.fraud[rows], data.weight[rows]
    alerts = score >= threshold
    alerted = float(weight[alerts].sum())
    return {
        "auc_roc": auc_roc(fraud, score, weight),
        "average_precision": average_precision(fraud, score, weight),
        f"card_precision_{TOP_CARDS}": card_precision(
            fraud, score, data.event_time_us[rows], by_first_row(data.card[rows]), TOP_CARDS
        ),
        "threshold": threshold,
        "alerts_per_day": alerted / days,
        "alert_rate": alerted / float(weight.sum()),
        "alert_precision": float(weight[alerts & fraud].sum()) / alerted if alerted else None,
        "alert_recall": float(weight[alerts & fraud].sum() / weight[fraud].sum()),
        "expected_to_observed_frauds": float((weight * score).sum() / weight[fraud].sum()),
        "kernel": KERNEL_VERSION,
    }


def validation_record(
    data: TrainingSet,
    split: Split,
    score: NDArray[np.float64],
    threshold: float,
    training: tuple[NDArray[np.intp], NDArray[np.float64]],
    features: Sequence[str],
) -> dict[str, Any]:
    """Return what a version keeps of its validation period, beside its metrics.

    Args:
        data: Transactions.
        split: Has the rows of the period.
        score: Calibrated scores of the period, shape (k,).
        threshold: Score from which on there is an alert.
        training: Rows that trees were grown on, and their weights.
        features: Features of the version.
    """
    checked = split.validation
    fraud, weight = data.fraud[checked], data.weight[checked]
    return {
        "calibration_table": calibration_table(fraud, score, weight),
        "by_period": by_period(fraud, score, weight, data.event_time_us[checked]),
        "segments": outcomes_by_segment(
            data.wide(checked),
            {name: values[checked] for name, values in data.segment_fields.items()},
            *(fraud, score, weight, threshold),
        ),
        "benchmark": benchmark(data, training, checked, features),
    }


def by_first_row(card: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return cards numbered in the order of their first rows, shape (n,).

    Of equal scores the lower card comes first in card precision: how cards were numbered before must not show.

    >>> by_first_row(np.array([7, 3, 7, 9])).tolist()
    [0, 1, 0, 2]
    """
    _, first, inverse = np.unique(card, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    numbered: NDArray[np.int64] = rank[inverse]
    return numbered


def calibration_table(
    fraud: NDArray[np.bool_], score: NDArray[np.float64], weight: NDArray[np.float64]
) -> list[dict[str, float]]:
    """Return mean score and observed rate of fraud in bins of the score; bins without rows are left out.

    Args:
        fraud: Shape (n,).
        score: Calibrated scores, shape (n,).
        weight: How many transactions each row stands for, shape (n,).

    >>> calibration_table(np.array([True, False]), np.array([0.5, 0.4]), np.ones(2))
    [{'from': 0.3, 'to': 0.6, 'rows': 2.0, 'mean_score': 0.45, 'observed_rate': 0.5}]
    """
    bins = np.clip(np.searchsorted(SCORE_EDGES, score, side="right") - 1, 0, len(SCORE_EDGES) - 2)
    found = []
    for number, (low, high) in enumerate(pairwise(SCORE_EDGES)):
        inside = bins == number
        rows = float(weight[inside].sum())
        if rows:
            mean = float((weight[inside] * score[inside]).sum()) / rows
            rate = float(weight[inside & fraud].sum()) / rows
            found.append({"from": low, "to": high, "rows": rows, "mean_score": mean, "observed_rate": rate})
    return found


def by_period(
    fraud: NDArray[np.bool_], score: NDArray[np.float64], weight: NDArray[np.float64], event_time_us: NDArray[np.int64]
) -> list[dict[str, Any]]:
    """Return rows, frauds and ranking metrics of each day, week or month of a period; arrays of shape (n,)."""
    day = event_time_us // US_PER_DAY
    first, length = int(day.min()), int(day.max() - day.min()) + 1
    step = 1 if length <= DAILY_UP_TO else 7
    begin = day - (day - first) % step
    if length > WEEKS_UP_TO:
        begin = np.maximum(day.astype("M8[D]").astype("M8[M]").astype("M8[D]").astype(np.int64), first)
    found = []
    for start in np.unique(begin).tolist():
        inside = begin == start
        found.append(
            {
                "from": str(np.datetime64(start, "D")),
                "days": step if length <= WEEKS_UP_TO else int(day[inside].max()) - start + 1,
                "rows": float(weight[inside].sum()),
                "frauds": float(weight[inside & fraud].sum()),
                "auc_roc": auc_roc(fraud[inside], score[inside], weight[inside]),
                "average_precision": average_precision(fraud[inside], score[inside], weight[inside]),
            }
        )
    return found


def benchmark(
    data: TrainingSet,
    training: tuple[NDArray[np.intp], NDArray[np.float64]],
    validation: NDArray[np.intp],
    names: Sequence[str],
) -> dict[str, Any]:
    """Return the average precision on the validation rows of what needs no trees, the least that a version should beat.

    A logistic regression on the logarithms of `BENCHMARK_FEATURES`, and the amount alone. Only features that the
    version itself may use take part.

    Args:
        data: Transactions.
        training: Rows to fit on, and their weights.
        validation: Rows to measure on.
        names: Features of the version.
    """
    found: dict[str, Any] = {}
    fraud, weight = data.fraud[validation], data.weight[validation]
    if "amount" in names:
        amount = data.column("amount")[validation]
        found["amount"] = average_precision(fraud, amount, weight)
    used = [name for name in BENCHMARK_FEATURES if name in names]
    if used:
        rows, row_weight = training
        inputs = _inputs(data, rows, used)
        mean, deviation = inputs.mean(axis=0), inputs.std(axis=0) + 1e-9
        fitted = LogisticRegression(max_iter=200).fit((inputs - mean) / deviation, data.fraud[rows], row_weight)
        score = fitted.decision_function((_inputs(data, validation, used) - mean) / deviation)
        found["logistic_regression"] = average_precision(fraud, score, weight)
        found["features"] = used
    return found


def _inputs(data: TrainingSet, rows: NDArray[np.intp], names: list[str]) -> NDArray[np.float64]:
    return np.log1p(np.maximum(np.nan_to_num(np.column_stack([data.column(name)[rows] for name in names])), 0.0))


def input_digest(data: TrainingSet, rows: NDArray[np.intp], names: Sequence[str]) -> str:
    """Return the first 16 digits of the SHA-256 of all that a training sees of some rows, in their order.

    Args:
        data: Transactions; every missing value counts alike.
        rows: The rows.
        names: Features that take part.
    """
    digest = hashlib.sha256(" ".join(names).encode())
    for name in names:
        values = data.column(name)[rows]
        values[np.isnan(values)] = np.nan
        digest.update(values.tobytes())
    for other in (data.fraud, data.weight, data.event_time_us):
        digest.update(np.ascontiguousarray(other[rows]).tobytes())
    return digest.hexdigest()[:16]


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
