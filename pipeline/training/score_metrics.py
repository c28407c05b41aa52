"""Measures of scores."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from schemas.times import US_PER_DAY


def auc_roc(fraud: NDArray[np.bool_], score: NDArray[np.float64], weight: NDArray[np.float64]) -> float | None:
    """Return the area under the ROC curve; None where one of the two classes is missing.

    Args:
        fraud: Shape (n,).
        score: Shape (n,), higher for fraud.
        weight: Number of transactions that each row stands for, shape (n,).
    """
    if fraud.all() or not fraud.any():
        return None
    return float(roc_auc_score(fraud, score, sample_weight=weight))


def average_precision(
    fraud: NDArray[np.bool_], score: NDArray[np.float64], weight: NDArray[np.float64]
) -> float | None:
    """Return the average precision (area under precision and recall); None without frauds.

    Args:
        fraud: Shape (n,).
        score: Shape (n,), higher for fraud.
        weight: Number of transactions that each row stands for, shape (n,).
    """
    if not fraud.any():
        return None
    return float(average_precision_score(fraud, score, sample_weight=weight))


def card_precision(
    fraud: NDArray[np.bool_],
    score: NDArray[np.float64],
    event_time_us: NDArray[np.int64],
    card: NDArray[np.int64],
    top: int = 100,
    *,
    remove_detected: bool = False,
) -> float | None:
    """Card precision at ``top``, mean over the days of `daily_card_precision`; None without rows."""
    if len(score) == 0:
        return None
    _, precision = daily_card_precision(fraud, score, event_time_us, card, top, remove_detected=remove_detected)
    return float(np.mean(precision))


def daily_card_precision(
    fraud: NDArray[np.bool_],
    score: NDArray[np.float64],
    event_time_us: NDArray[np.int64],
    card: NDArray[np.int64],
    top: int,
    *,
    remove_detected: bool = False,
    among: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the share of frauds among the cards with the highest scores of each day.

    After the Fraud Detection Handbook (Le Borgne, Siblini, Lebichot, Bontempi), "Threshold-based metrics". Of equal
    scores the lower card comes first.

    Args:
        fraud: Shape (n,).
        score: Shape (n,).
        event_time_us: Microseconds since 1970, shape (n,).
        card: Integers from 0 on, shape (n,).
        top: Cards a day; the divisor, even on a day of fewer cards.
        remove_detected: Leave a card out of all days after one on which it was among the ``top`` with fraud.
        among: Rows that count, shape (n,); by default all.

    Returns:
        Days since 1970-01-01 in UTC, and shares of ``top``; each of shape (days with rows,).
    """
    detected = np.zeros(int(card.max(initial=-1)) + 1, np.bool_)
    days, precision = [], []
    for day, rows in days_of(event_time_us):
        its_card, its_score, its_fraud = card[rows], score[rows], fraud[rows]
        if among is not None:
            kept = among[rows]
            its_card, its_score, its_fraud = its_card[kept], its_score[kept], its_fraud[kept]
        if not len(its_card):
            continue
        # Best score first, so that the first row of a card is the card's best of that day.
        order, starts = _by_card(its_card, its_score)
        its_card, its_score, its_fraud = its_card[order], its_score[order], its_fraud[order]
        any_fraud = np.logical_or.reduceat(its_fraud, starts)
        best, its_card = its_score[starts], its_card[starts]
        left = np.flatnonzero(~detected[its_card])
        chosen = left[np.argsort(-best[left], kind="stable")[:top]]
        found = chosen[any_fraud[chosen]]
        days.append(day)
        precision.append(len(found) / top)
        if remove_detected:
            detected[its_card[found]] = True
    return np.array(days, np.int64), np.array(precision, np.float64)


def days_of(event_time_us: NDArray[np.int64]) -> Iterator[tuple[int, slice | NDArray[np.intp]]]:
    """Each day (since 1970-01-01, UTC) that has rows, with its rows in their order; ``event_time_us`` of shape (n,).

    Where rows stand in the order of time, nothing is held of other days.
    """
    if not len(event_time_us):
        return
    if (event_time_us[1:] >= event_time_us[:-1]).all():
        days = np.arange(event_time_us[0] // US_PER_DAY, event_time_us[-1] // US_PER_DAY + 1)
        begins = np.searchsorted(event_time_us, days * US_PER_DAY).tolist()
        for day, begin, end in zip(days.tolist(), begins, [*begins[1:], len(event_time_us)], strict=True):
            if end > begin:
                yield day, slice(begin, end)
        return
    day_numbers = event_time_us // US_PER_DAY
    order = np.argsort(day_numbers, kind="stable")
    days, first = np.unique(day_numbers[order], return_index=True)
    for day, begin, end in zip(days.tolist(), first.tolist(), [*first.tolist()[1:], len(day_numbers)], strict=True):
        yield day, order[begin:end]


def daily_top_cards(
    score: NDArray[np.float64], event_time_us: NDArray[np.int64], card: NDArray[np.int64], top: int
) -> NDArray[np.bool_]:
    """Return which rows are of a card that is among the day's ``top`` cards, as `daily_card_precision` ranks them.

    Args:
        score: Shape (n,).
        event_time_us: Microseconds since 1970, shape (n,).
        card: Integers, shape (n,).
        top: Cards a day.
    """
    chosen = np.zeros(len(score), np.bool_)
    for _, rows in days_of(event_time_us):
        order, starts = _by_card(card[rows], score[rows])
        best = score[rows][order][starts]
        at_top = np.zeros(len(starts), np.bool_)
        at_top[np.argsort(-best, kind="stable")[:top]] = True
        of_day = np.empty(len(order), np.bool_)
        of_day[order] = np.repeat(at_top, np.diff(np.r_[starts, len(order)]))
        chosen[rows] = of_day
    return chosen


def _by_card(card: NDArray[np.int64], score: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return rows ordered by card, each card's best score first, and the place of each card's first row."""
    order = np.lexsort((-score, card))
    ordered = card[order]
    return order, np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])


def calibration_error(score: NDArray[np.float64], fraud: NDArray[np.bool_], bins: int) -> float:
    """Return the expected calibration error over ``bins`` groups of equal size, from the lowest to the highest score.

    The mean, over the rows, of the distance between a group's mean score and its share of frauds (Naeini, Cooper,
    Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian Binning", 2015, with groups of equal size).

    Args:
        score: Probabilities of fraud; shape (n,), at least one.
        fraud: Shape (n,).
        bins: Number of groups, at most n.

    >>> round(calibration_error(np.array([0.2, 0.2, 0.8, 0.8]), np.array([False, False, True, True]), 2), 3)
    0.2
    """
    order = np.argsort(score, kind="stable")
    gaps = [
        len(rows) * abs(float(score[rows].mean()) - float(fraud[rows].mean())) for rows in np.array_split(order, bins)
    ]
    return float(sum(gaps) / len(score))
