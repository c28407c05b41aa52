"""Records of a version's validation period, small enough to be kept with it."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from pipeline.decision.budget import case_numbers, highest_of_cases
from pipeline.features.catalogue import FEATURES, KERNEL_VERSION
from pipeline.learning.sampling import sample_positions
from pipeline.training.cohorts import Split, TrainingSet
from pipeline.training.score_metrics import auc_roc, average_precision, card_precision
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
SEGMENT_FIELDS: Final = ("currency", "country", "channel", "mcc", "transaction_type")
"""Fields of a transaction that are segments where a history has them."""
MOST_VALUES: Final = 10
"""Most frequent values of an attribute that are distinguished."""
AMOUNT_BANDS: Final = 4
MERCHANT_AGE_DAYS: Final = (14, 60)
_AMOUNT, _AGE_S = "amount", "merchant_seconds_since_first"
SEGMENT_FEATURES: Final = tuple(name for name in (_AMOUNT, _AGE_S) if name in FEATURES)
"""Features that segments go by, of those that are declared; the amount always is."""


def measured(data: TrainingSet, split: Split, score: NDArray[np.float64], threshold: float) -> dict[str, Any]:
    """Return the metrics of a version on the validation period.

    Args:
        data: Transactions with what they turned out to be.
        split: Has the rows of the period, k of them.
        score: Calibrated scores of the period, shape (k,).
        threshold: Score from which on there is an alert.
    """
    rows = split.validation
    fraud, weight = data.fraud[rows], data.weight[rows]
    alerts, days = score >= threshold, split.validation_us / US_PER_DAY
    highest = highest_of_cases(score, case_numbers(data.card[rows], data.event_time_us[rows]))
    alerted = float(weight[alerts].sum())
    return {
        "auc_roc": auc_roc(fraud, score, weight),
        "average_precision": average_precision(fraud, score, weight),
        f"card_precision_{TOP_CARDS}": card_precision(
            fraud, score, data.event_time_us[rows], _by_first_row(data.card[rows]), TOP_CARDS
        ),
        "threshold": threshold,
        "alerts_per_day": alerted / days,
        "cases_per_day": float(weight[highest[alerts[highest]]].sum()) / days,
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


def _by_first_row(card: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return cards numbered in the order of their first rows, shape (n,).

    Of equal scores the lower card comes first in card precision: how cards were numbered before must not show.
    """
    return np.asarray(pd.factorize(card)[0], np.int64)


def calibration_table(
    fraud: NDArray[np.bool_], score: NDArray[np.float64], weight: NDArray[np.float64]
) -> list[dict[str, float]]:
    """Return mean score and observed rate of fraud in bins of the score; bins without rows are left out.

    Args:
        fraud: Shape (n,).
        score: Calibrated scores, 0 to 1; shape (n,). `SCORE_EDGES` are the bins.
        weight: Number of transactions that each row stands for, shape (n,).

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
    """Return rows, frauds and ranking metrics of each day, week or month of a period.

    Args:
        fraud: Shape (n,), at least one row.
        score: Shape (n,), higher for fraud.
        weight: Number of transactions that each row stands for, shape (n,).
        event_time_us: Microseconds since 1970, shape (n,); in any order.

    Returns:
        Days (UTC) up to `DAILY_UP_TO` days, weeks from the first day on up to `WEEKS_UP_TO`, else calendar months; in
        their order, without those that have no rows. A metric is None where it is not defined.
    """
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


def outcomes_by_segment(
    features: NDArray[np.float64],
    fields: Mapping[str, NDArray[np.object_]],
    fraud: NDArray[np.bool_],
    score: NDArray[np.float64],
    weight: NDArray[np.float64],
    threshold: float,
) -> list[dict[str, Any]]:
    """Return alerts and frauds of each segment of n rows: whom alerts fall on, and how often wrongly.

    Args:
        features: Shape (n, len(FEATURES)).
        fields: Values of `SEGMENT_FIELDS`, each of shape (n,), with None for no value.
        fraud: Shape (n,), as are scores and weights.
        score: Calibrated scores.
        weight: How many transactions each row stands for.
        threshold: Scores at or above it raise alerts.

    Returns:
        For each segment its name and value, transactions, frauds observed and expected, the share of transactions that
        raise an alert, the precision of these alerts (None without alerts), and false positives per 1,000 transactions.
    """
    alert = score >= threshold
    found = []
    for segment, value, inside in _segments(features, fields):
        weights, rows = weight[inside], float(weight[inside].sum())
        alerts, frauds = float(weights[alert[inside]].sum()), float(weights[fraud[inside]].sum())
        hits = float(weights[(alert & fraud)[inside]].sum())
        found.append(
            {
                "segment": segment,
                "value": value,
                "rows": rows,
                "frauds": frauds,
                "expected_frauds": _rounded(float((weights * score[inside]).sum())),
                "alert_rate": _rounded(alerts / rows),
                "precision": _rounded(hits / alerts) if alerts else None,
                "false_positives_per_1000": _rounded(1_000 * (alerts - hits) / rows),
            }
        )
    return found


def _segments(
    features: NDArray[np.float64], fields: Mapping[str, NDArray[np.object_]]
) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    """Yield name, value and rows of each segment that has rows."""
    amount = features[:, FEATURES.index(_AMOUNT)]
    edges = np.unique(np.quantile(amount, np.linspace(0, 1, AMOUNT_BANDS + 1)[1:-1]))
    yield from _bands("amount", amount, [-np.inf, *edges.tolist(), np.inf], "{:.2f}")
    if _AGE_S in FEATURES:
        days = features[:, FEATURES.index(_AGE_S)] / 86_400
        yield from _bands("merchant age in days", days, [-np.inf, *MERCHANT_AGE_DAYS, np.inf], "{}")
    for name, values in fields.items():
        texts = np.array(["none" if value is None else str(value) for value in values])
        distinct, counts = np.unique(texts, return_counts=True)
        kept = distinct[np.argsort(-counts, kind="stable")[:MOST_VALUES]]
        for value in kept.tolist():
            yield name, value, texts == value
        if len(distinct) > len(kept):
            yield name, "others", ~np.isin(texts, kept)


def _bands(
    name: str, value: NDArray[np.float64], edges: list[float], text: str
) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    for low, high in pairwise(edges):
        inside = (value > low) & (value <= high)
        if inside.any():
            below, above = f"above {text.format(low)}", f"up to {text.format(high)}"
            yield name, below if high == np.inf else above if low == -np.inf else f"{below}, {above}", inside


def _rounded(value: float) -> float:
    """Return a figure in the few digits that a person reads: metadata are bounded."""
    return float(f"{value:.6g}")


def benchmark(
    data: TrainingSet,
    training: tuple[NDArray[np.intp], NDArray[np.float64]],
    validation: NDArray[np.intp],
    names: Sequence[str],
) -> dict[str, Any]:
    """Return the average precision on the validation rows of what needs no trees, the least that a version should beat.

    A logistic regression on the logarithms of `BENCHMARK_FEATURES`, and the amount alone.

    Args:
        data: Transactions with what they turned out to be.
        training: Rows that the regression is fitted on, and their weights.
        validation: Rows of the validation period.
        names: Features of the version; no others take part.

    Returns:
        ``amount`` and ``logistic_regression``, each if its features may be used, and the regression's ``features``.
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
    """Return the first 16 digits of the SHA-256 of all that a training sees of some rows, in their order."""
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
    data: TrainingSet, checked: NDArray[np.intp], scored: Callable[[NDArray[np.bool_]], NDArray[np.float64]]
) -> list[dict[str, Any]]:
    """Return how a training does on the true labels of its validation period, after it has learned wrong ones.

    Args:
        data: n transactions with their true labels.
        checked: Rows of the validation period.
        scored: Trains on some labels, shape (n,), and returns scores of the validation period, shape (len(checked),).

    Returns:
        For each kind of wrong labels, "none" first: the number of them, average precision and card precision at 100.
    """
    found, truth = [], data.fraud[checked]
    event_time_us, card = data.event_time_us[checked], _by_first_row(data.card)[checked]
    for labels, spoilt in _spoilt(data):
        score = scored(spoilt)
        found.append(
            {
                "labels": labels,
                "wrong": int(np.count_nonzero(spoilt != data.fraud)),
                "average_precision": average_precision(truth, score, np.ones(len(checked))),
                "card_precision_100": card_precision(truth, score, event_time_us, card),
            }
        )
    return found


def _spoilt(data: TrainingSet) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Yield the name of each kind of wrong labels, and all labels with them.

    A share of the frauds is called legitimate, and as many legitimate transactions fraud: with a share of all labels
    the wrong frauds would be a multiple of the true ones.
    """
    fraud, amount = data.fraud, data.column("amount")
    position = sample_positions(data.identity.astype(np.uint64), _WRONG_SAMPLE)
    others = max(int(np.count_nonzero(~fraud)), 1)
    yield "none", fraud
    for share in WRONG_SHARES:
        wrong = position < np.where(fraud, share, share * np.count_nonzero(fraud) / others)
        yield f"{share:.0%} of the frauds, and as many others", fraud ^ wrong
    recent = data.event_time_us >= data.event_time_us.max() - POISONED_DAYS * US_PER_DAY
    small = amount <= np.quantile(amount, 0.25)
    called_fraud = recent & small & (position < POISONED_SHARE)
    yield f"a source that calls a third of the smallest amounts of {POISONED_DAYS} days fraud", fraud | called_fraud
