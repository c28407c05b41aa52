"""Features of recorded history, as columns: what training sets, backtests and warm-ups are made of."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.engine.accept import counting
from pipeline.engine.columns import digest_keys, identities, name_keys
from pipeline.engine.merchants import behind, labels_log, transactions_log
from pipeline.features.catalogue import (
    CARD_FEATURES,
    FEATURES,
    MERCHANT_FEATURES,
    US_PER_SECOND,
)
from pipeline.features.clock import hours, weekdays
from pipeline.features.kernel import CardWindows, MerchantWindows
from pipeline.learning.regimes import NEVER_US

_BATCH_ROWS = 16_384


@dataclass(frozen=True, slots=True)
class KnownLabels:
    """Labels of a history, in the order in which they became known here.

    Arrays of equal length: ``row`` of the labelled transaction, ``known`` (1 fraud, 0 legitimate, 2 none) and
    ``known_at_us``.
    """

    row: NDArray[np.int64]
    known: NDArray[np.int8]
    known_at_us: NDArray[np.int64]


def labels_known(known_at_us: NDArray[np.int64], fraud: NDArray[np.bool_]) -> KnownLabels:
    """Return the labels of n transactions that get one.

    Args:
        known_at_us: When each gets its label; `NEVER_US` for none.
        fraud: What they turned out to be.
    """
    rows = np.flatnonzero(known_at_us < NEVER_US)
    rows = rows[np.argsort(known_at_us[rows], kind="stable")]
    return KnownLabels(rows, fraud[rows].astype(np.int8), known_at_us[rows])


def delayed_labels(
    event_time_us: NDArray[np.int64],
    fraud: NDArray[np.bool_],
    delay_s: float,
    labelled: NDArray[np.bool_] | None = None,
) -> KnownLabels:
    """Return every transaction's label (or those of ``labelled``), known ``delay_s`` seconds of event time after it."""
    known_at_us = event_time_us + round(delay_s * US_PER_SECOND)
    return labels_known(known_at_us if labelled is None else np.where(labelled, known_at_us, NEVER_US), fraud)


def identities_of(frame: pd.DataFrame) -> NDArray[np.uint64]:
    """Return the `transaction_hash` of each row; shape (n,)."""
    return identities(_texts(frame["card_id"]), _texts(frame["transaction_id"]))


def digests_of(frame: pd.DataFrame) -> NDArray[np.int64]:
    """Return the first word of each row's `transaction_digest`, by which trainings sample; shape (n,)."""
    words = digest_keys(_texts(frame["card_id"]), _texts(frame["transaction_id"]))
    return np.ascontiguousarray(words[:, 0])


def event_times_us(times: pd.Series) -> NDArray[np.int64]:
    """Microseconds since the epoch of a time-zone aware column; shape (n,)."""
    if times.dt.tz is None:
        raise ValueError("event_time has no time zone; say which one it is in (UTC, for instance)")
    return np.asarray(times.dt.tz_convert("UTC").dt.as_unit("us").astype("int64"), np.int64)


def compute_features(
    frame: pd.DataFrame,
    *,
    label_delay_s: float | None = 7 * 86_400.0,
    labels: KnownLabels | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> NDArray[np.float64]:
    """Features of a history in event-time order, as the agents would have computed them.

    ``frame``: columns ``transaction_id``, ``event_time`` (time-zone aware), ``card_id``, ``merchant_id``,
    ``amount_minor`` (minor units of the base currency); optional ``transaction_type`` (a missing one is a purchase, as
    on the wire) and, unless ``labels`` says what was known when, ``fraud`` (bool), known ``label_delay_s`` seconds
    after each transaction (None: never).
    Rows must be sorted by ``event_time``; ``report`` is told how far it is. Returns shape (len(frame), len(FEATURES)).
    """
    event_time_us = event_times_us(frame["event_time"])
    if np.any(np.diff(event_time_us) < 0):
        raise ValueError("the history is not in event-time order; sort it by event_time first")
    amount_minor = frame["amount_minor"].to_numpy(np.int64)
    cards, merchants = _texts(frame["card_id"]), _texts(frame["merchant_id"])
    card_keys, merchant_keys = name_keys(cards), name_keys(merchants)
    counts = (
        counting(_texts(frame["transaction_type"].fillna("purchase")))
        if "transaction_type" in frame
        else np.ones(len(frame), bool)
    )
    features, outliers = np.empty((len(frame), len(FEATURES))), np.empty(len(frame), np.bool_)
    windows = CardWindows()
    for part in _parts(len(frame)):
        report(f"features of cards: {part.start:,} of {len(frame):,} transactions")
        profile = windows.profile(
            card_keys[part],
            merchant_keys[part],
            event_time_us[part],
            amount_minor[part],
            counts[part],
            hours(event_time_us[part]),
            weekdays(event_time_us[part]),
        )
        features[part, : len(CARD_FEATURES)], outliers[part] = profile.features, profile.outlier
        windows.settle()
    if labels is None and label_delay_s is not None:
        labels = delayed_labels(event_time_us, frame["fraud"].to_numpy(bool), label_delay_s)
    if labels is None:
        labels = KnownLabels(np.empty(0, np.int64), np.empty(0, np.int8), np.empty(0, np.int64))
    features[:, len(CARD_FEATURES) :] = _merchant_features(
        identities(cards.take(labels.row), _texts(frame["transaction_id"]).take(labels.row)),
        merchant_keys, event_time_us, amount_minor, counts, outliers, labels, report,
    )  # fmt: skip
    return features


def _merchant_features(
    labelled: NDArray[np.uint64],
    keys: NDArray[np.int64],
    event_time_us: NDArray[np.int64],
    amount_minor: NDArray[np.int64],
    counts: NDArray[np.bool_],
    outliers: NDArray[np.bool_],
    labels: KnownLabels,
    report: Callable[[str], None],
) -> NDArray[np.float64]:
    """One log of both: a label stands before the first transaction at or after its ``known_at_us``, behind its own."""
    n = len(event_time_us)
    # A label that is known at once would otherwise tell the features of its own transaction.
    before = np.maximum(np.searchsorted(event_time_us, labels.known_at_us), labels.row + 1)
    place = np.concatenate([2 * np.arange(n) + 1, 2 * before])
    order = np.lexsort((np.concatenate([np.zeros(n, np.int64), labels.known_at_us]), place))
    log = behind(
        transactions_log(keys, event_time_us, amount_minor, counts, outliers),
        labels_log(keys[labels.row], labelled, event_time_us[labels.row], labels.known, labels.known_at_us),
    )
    windows, out = MerchantWindows(), np.empty((len(order), len(MERCHANT_FEATURES)))
    for part in _parts(len(order)):
        report(f"features of merchants: {part.start:,} of {len(order):,} transactions and labels")
        out[order[part]] = log.take(order[part]).profile(windows)
        windows.settle()
    return out[:n]


def _texts(column: pd.Series) -> pa.Array:
    return pa.array(column.tolist(), pa.large_string())


def _parts(rows: int) -> Iterator[slice]:
    """Batches: what is settled needs no journal, and what is behind the horizon can be forgotten on the way."""
    for start in range(0, rows, _BATCH_ROWS):
        yield slice(start, start + _BATCH_ROWS)
