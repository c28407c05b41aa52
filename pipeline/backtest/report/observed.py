"""A variant's decisions as arrays, with what turned out to be true."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.backtest.input.spill import blocks, in_blocks, texts
from pipeline.backtest.labels.ground_truth import GroundTruth, answered_us, ground_truth
from pipeline.backtest.metrics.cost_model import from_alert_on
from pipeline.backtest.metrics.ranking import top_of_days
from pipeline.backtest.runner.result import BacktestResult, Variant
from pipeline.decision.budget import case_numbers
from schemas.times import US_PER_DAY


class Shared(NamedTuple):
    """The transactions that all variants decide about; arrays of shape (n,)."""

    frame: pd.DataFrame
    """The first variant's decisions, for names."""
    event_time_us: NDArray[np.int64]
    card: NDArray[np.int64]
    """Numbers from 0 on."""
    cards: int
    case: NDArray[np.int64]
    """Case of each; cases begin with the range."""
    amount: NDArray[np.float64]
    day: NDArray[np.int64]
    """Number of the day (UTC) within the range, from 0 on."""
    first_day: int
    """Days since 1970-01-01."""
    days: int
    """Calendar days that the range touches."""
    span_days: float
    """Length of what was decided."""
    from_us: int
    until_us: int
    """Ends of what was decided, the later one excluded; in microseconds since 1970."""
    truth: GroundTruth


class Observed(NamedTuple):
    """A variant's decisions; arrays of shape (n,)."""

    score: NDArray[np.float64]
    alert: NDArray[np.bool_]
    caught: NDArray[np.bool_]
    """Frauds from an alert on."""
    best: NDArray[np.bool_]
    """True where the score is among the highest k of its day."""
    known_us: NDArray[np.int64]
    """When what is known was known to this variant; `pipeline.learning.regimes.NEVER_US` where nothing is."""


def share(result: BacktestResult) -> Shared:
    """The transactions of ``result`` and what is known about them."""
    frame = result.variants[0].decisions
    times = result.event_time_us
    card, cards = _numbered(frame["card_id"])
    first_day = result.from_us // US_PER_DAY
    last_day = max(result.until_us - 1, result.from_us) // US_PER_DAY
    if len(times) and (times.min() < result.from_us or times.max() >= result.to_us):
        raise ValueError("decisions lie outside of the range: give the report those of the range alone")
    return Shared(
        frame=frame,
        event_time_us=times,
        card=card,
        cards=cards,
        case=case_numbers(card, times),
        amount=frame["amount_base"].to_numpy(np.float64),
        day=in_blocks(len(times), np.int64, lambda rows: times[rows] // US_PER_DAY - first_day),
        first_day=first_day,
        days=last_day - first_day + 1,
        span_days=(result.until_us - result.from_us) / US_PER_DAY,
        from_us=result.from_us,
        until_us=result.until_us,
        truth=ground_truth(frame, result.labels),
    )


def observe(variant: Variant, shared: Shared, protection_us: int, top: int) -> Observed:
    """Return the decisions of a variant as arrays.

    Args:
        variant: Has a row for each transaction of ``shared``, in the same order.
        shared: Transactions of all variants.
        protection_us: Microseconds for which an alert keeps fraud off its card.
        top: Number of the highest scores of a day that are its best.

    Raises:
        ValueError: The variant decided about other transactions.
    """
    frame = variant.decisions
    if frame is not shared.frame:
        for name in ("transaction_id", "card_id"):
            if not all(texts(frame[name], rows).equals(texts(shared.frame[name], rows)) for rows in blocks(len(frame))):
                raise ValueError(f"variant {variant.name} decided about other transactions than the first one")
    alert = (frame["action"] == "alert").to_numpy(np.bool_)
    fraud = shared.truth.fraud
    caught = np.zeros(len(frame), np.bool_)
    caught[fraud] = from_alert_on(alert[fraud], shared.card[fraud], shared.event_time_us[fraud], protection_us)
    score = frame["score"].to_numpy(np.float64)
    known_us = shared.truth.known_us
    if variant.reviewed is not None:
        label_us, answer_us = known_us, answered_us(frame, variant.reviewed.answers)
        known_us = in_blocks(len(frame), np.int64, lambda rows: np.minimum(label_us[rows], answer_us[rows]))
    return Observed(score, alert, caught, top_of_days(score, shared.event_time_us, top), known_us)


def _numbered(names: "pd.Series[str]") -> tuple[NDArray[np.int64], int]:
    """(each name's number, from 0 on as they first come; how many names there are)."""
    numbers: dict[str, int] = {}

    def numbers_of(rows: slice) -> NDArray[np.int64]:
        encoded = texts(names, rows).dictionary_encode()
        known = [numbers.setdefault(name, len(numbers)) for name in encoded.dictionary.to_pylist()]
        rows_of: NDArray[np.int32] = encoded.indices.to_numpy()
        return np.array(known, np.int64)[rows_of]

    return in_blocks(len(names), np.int64, numbers_of), len(numbers)
