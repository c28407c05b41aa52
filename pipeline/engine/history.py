"""Features of recorded history, as columns: what training sets, backtests and warm-ups are made of."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.engine.accept import counting
from pipeline.engine.columns import digest_keys, identities, name_keys
from pipeline.engine.merchants import MerchantLog, behind, labels_log, transactions_log
from pipeline.features.catalogue import ATTRIBUTE_FEATURES, CARD_FEATURES, FEATURES, MERCHANT_FEATURES
from pipeline.features.clock import hours, weekdays
from pipeline.features.kernel import CardWindows, MerchantWindows
from pipeline.learning.regimes import NEVER_US
from schemas.codec import wall_clock
from schemas.errors import InvalidMessage
from schemas.times import US_PER_HOUR, US_PER_SECOND

_BATCH_ROWS = 16_384


@dataclass(frozen=True, slots=True)
class KnownLabels:
    """Labels of a history, in the order in which they became known here.

    Arrays of equal length: ``row`` of the labelled transaction, ``known`` (1 fraud, 0 legitimate, 2 none),
    ``known_at_us`` and, where they are known already, ``identity``: `transaction_hash` values.
    """

    row: NDArray[np.int64]
    known: NDArray[np.int8]
    known_at_us: NDArray[np.int64]
    identity: NDArray[np.uint64] | None = None


def labels_known(
    known_at_us: NDArray[np.int64],
    fraud: NDArray[np.bool_],
    identity: NDArray[np.uint64] | None = None,
    corrected_at_us: NDArray[np.int64] | None = None,
) -> KnownLabels:
    """Return the labels of n transactions that get one.

    Args:
        known_at_us: When each gets its label; `NEVER_US` for none.
        fraud: What they turned out to be.
        identity: Their `transaction_hash` values, where they are known already.
        corrected_at_us: When a label that said the opposite is corrected; `NEVER_US` for one that was right.
    """
    rows = np.flatnonzero(known_at_us < NEVER_US)
    known, at_us = fraud[rows], known_at_us[rows]
    if corrected_at_us is not None:
        wrong = corrected_at_us[rows] < NEVER_US
        known = np.concatenate([known ^ wrong, known[wrong]])
        at_us = np.concatenate([at_us, corrected_at_us[rows[wrong]]])
        rows = np.concatenate([rows, rows[wrong]])
    order = np.argsort(at_us, kind="stable")
    rows = rows[order]
    of_rows = None if identity is None else identity[rows]
    return KnownLabels(rows, known[order].astype(np.int8), at_us[order], of_rows)


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
    """Return the first word of each row's digest, by which trainings sample; shape (n,)."""
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
    names: Sequence[str] = FEATURES,
    report: Callable[[str], None] = lambda _: None,
) -> NDArray[np.float64]:
    """Features of a history in event-time order, as the agents would have computed them.

    Args:
        frame: Columns ``transaction_id``, ``event_time`` (time-zone aware), ``card_id``, ``merchant_id``,
            ``amount_minor`` (minor units of the base currency); optional ``transaction_type`` (a missing one is a
            purchase, as on the wire), ``local_time`` (a missing one is the event time in UTC) and, unless ``labels``
            are given, ``fraud`` (bool). Rows must be sorted by ``event_time``. Declared attributes have columns of
            their features' names; one that is absent has no value.
        label_delay_s: From a transaction to its label, where ``labels`` are not given; None: there are none.
        labels: What was known when.
        names: The features to return, in this order; memory is theirs alone.
        report: Called now and then with how far it is, in words.

    Returns:
        Shape (len(frame), len(names)).

    Raises:
        ValueError: The rows are not in order, or their times have no zone.
        InvalidMessage: A ``local_time`` cannot be read.
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
    attributes = frame.reindex(columns=list(ATTRIBUTE_FEATURES)).to_numpy(np.float64)
    hour, weekday = _clocks(frame, event_time_us)
    features, outliers = np.empty((len(frame), len(names))), np.empty(len(frame), np.bool_)
    to, own = _columns(names, CARD_FEATURES)
    windows = CardWindows()
    for part in _parts(len(frame)):
        report(f"features of cards: {part.start:,} of {len(frame):,} transactions")
        profile = windows.profile(
            card_keys[part],
            merchant_keys[part],
            event_time_us[part],
            amount_minor[part],
            counts[part],
            hour[part],
            weekday[part],
            attributes[part],
        )
        features[part, to], outliers[part] = profile.features[:, own], profile.outlier
        windows.commit()
    if labels is None and label_delay_s is not None:
        labels = delayed_labels(event_time_us, frame["fraud"].to_numpy(bool), label_delay_s)
    if labels is None:
        labels = KnownLabels(np.empty(0, np.int64), np.empty(0, np.int8), np.empty(0, np.int64))
    labelled = labels.identity
    if labelled is None:
        labelled = identities(cards.take(labels.row), _texts(frame["transaction_id"]).take(labels.row))
    log = _merchants_log(labelled, merchant_keys, event_time_us, amount_minor, counts, outliers, labels)
    _fill_merchant_features(features, names, *log, report)
    return features


def _clocks(frame: pd.DataFrame, event_time_us: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return hour and weekday of each row, by the clock that acceptance goes by; shapes (n,)."""
    hour, weekday = hours(event_time_us), weekdays(event_time_us)
    if "local_time" in frame:
        for row in np.flatnonzero(frame["local_time"].notna()).tolist():
            try:
                of_day_us, weekday[row] = wall_clock(str(frame["local_time"].iat[row]))
            except InvalidMessage as error:
                raise InvalidMessage(error.code, f"row {row + 1} of the history: {error}") from error
            hour[row] = of_day_us / US_PER_HOUR
    return hour, weekday


def _columns(names: Sequence[str], wanted: Sequence[str]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return where the features among ``names`` that are in ``wanted`` stand in either."""
    found = [(at, wanted.index(name)) for at, name in enumerate(names) if name in wanted]
    return np.array([at for at, _ in found], np.intp), np.array([own for _, own in found], np.intp)


def _merchants_log(
    labelled: NDArray[np.uint64],
    keys: NDArray[np.int64],
    event_time_us: NDArray[np.int64],
    amount_minor: NDArray[np.int64],
    counts: NDArray[np.bool_],
    outliers: NDArray[np.bool_],
    labels: KnownLabels,
) -> tuple[MerchantLog, NDArray[np.intp]]:
    """Return transactions with labels behind them, and the order in which merchants see them.

    A label stands before the first transaction at or after its ``known_at_us``, behind its own.
    """
    n = len(event_time_us)
    # A label that is known at once would otherwise leak into the features of its own transaction.
    before = np.maximum(np.searchsorted(event_time_us, labels.known_at_us), labels.row + 1)
    position = np.concatenate([2 * np.arange(n) + 1, 2 * before])
    order = np.lexsort((np.concatenate([np.zeros(n, np.int64), labels.known_at_us]), position))
    log = behind(
        transactions_log(keys, event_time_us, amount_minor, counts, outliers),
        labels_log(keys[labels.row], labelled, event_time_us[labels.row], labels.known, labels.known_at_us),
    )
    return log, order


def _fill_merchant_features(
    features: NDArray[np.float64],
    names: Sequence[str],
    log: MerchantLog,
    order: NDArray[np.intp],
    report: Callable[[str], None],
) -> None:
    """Compute the features of merchants among ``names``; the first len(features) records are the transactions."""
    to, own = _columns(names, MERCHANT_FEATURES)
    windows = MerchantWindows()
    for part in _parts(len(order)):
        report(f"features of merchants: {part.start:,} of {len(order):,} transactions and labels")
        rows = order[part]
        found = log.take(rows).profile(windows)
        transactions = np.flatnonzero(rows < len(features))
        features[np.ix_(rows[transactions], to)] = found[np.ix_(transactions, own)]
        windows.commit()


def _texts(column: pd.Series) -> pa.Array:
    return pa.array(column.tolist(), pa.large_string())


def _parts(rows: int) -> Iterator[slice]:
    """Batches: what is committed needs no journal, and what is behind the retention can be forgotten on the way."""
    for start in range(0, rows, _BATCH_ROWS):
        yield slice(start, start + _BATCH_ROWS)
