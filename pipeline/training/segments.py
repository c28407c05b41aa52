"""Outcomes of a version by segment of the traffic: whom its alerts fall on, and how often wrongly."""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.features.catalogue import FEATURES

SEGMENT_FIELDS: Final = ("currency", "country", "channel", "mcc", "transaction_type")
"""Fields of a transaction that are segments where a history has them."""
MOST_VALUES: Final = 10
"""Most frequent values of an attribute that are distinguished."""
AMOUNT_BANDS: Final = 4
MERCHANT_AGE_DAYS: Final = (14, 60)
SEGMENT_FEATURES: Final = ("amount", "merchant_seconds_since_first")
"""Features that segments go by."""
_AMOUNT, _AGE_S = (FEATURES.index(name) for name in SEGMENT_FEATURES)


def outcomes_by_segment(
    features: NDArray[np.float64],
    fields: Mapping[str, NDArray[np.object_]],
    fraud: NDArray[np.bool_],
    score: NDArray[np.float64],
    weight: NDArray[np.float64],
    threshold: float,
) -> list[dict[str, Any]]:
    """Return alerts and frauds of each segment of n rows.

    Args:
        features: Shape (n, len(FEATURES)).
        fields: Values of `SEGMENT_FIELDS`, each of shape (n,), with None for no value.
        fraud: Shape (n,).
        score: Shape (n,).
        weight: How many transactions each row stands for, shape (n,).
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
    amount = features[:, _AMOUNT]
    edges = np.unique(np.quantile(amount, np.linspace(0, 1, AMOUNT_BANDS + 1)[1:-1]))
    yield from _bands("amount", amount, [-np.inf, *edges.tolist(), np.inf], "{:.2f}")
    yield from _bands("merchant age in days", features[:, _AGE_S] / 86_400, [-np.inf, *MERCHANT_AGE_DAYS, np.inf], "{}")
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
