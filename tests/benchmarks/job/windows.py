"""The messages and windows of job (a) as several engines take them: what a user of any of them would write alike."""

from collections.abc import Sequence
from datetime import datetime

import msgspec
import numpy as np

from tests.benchmarks.job.definition import HOME_COUNTRY, WINDOWS_MS, FloatArray, inputs_of_many

TRIM = 64


class Transaction(msgspec.Struct, gc=False):
    """The fields that the job needs; others are skipped by the decoder."""

    transaction_id: str
    event_time: datetime
    card_id: str
    amount: float
    channel: str
    country: str
    mcc: str


class Decision(msgspec.Struct, gc=False):
    """The answer."""

    transaction_id: str
    card_id: str
    score: float
    lightgbm: float
    river: float
    count_1d: float
    count_7d: float
    count_30d: float
    mean_1d: float
    mean_7d: float
    mean_30d: float


class Card:
    """A card's transactions in order, and for each window where it begins and its sum."""

    __slots__ = ("cents", "starts", "sums", "times_ms")

    def __init__(self) -> None:
        self.times_ms: list[int] = []
        self.cents: list[int] = []
        self.starts = [0, 0, 0]
        self.sums = [0, 0, 0]

    def profile(self, time_ms: int, cents: int) -> tuple[float, ...]:
        """Counts and means of the windows at ``time_ms``; then the transaction enters."""
        times_ms, amounts, starts, sums = self.times_ms, self.cents, self.starts, self.sums
        n = len(times_ms)
        counts, means = [], []
        for k, window_ms in enumerate(WINDOWS_MS):
            start, bound = starts[k], time_ms - window_ms
            while start < n and times_ms[start] <= bound:
                sums[k] -= amounts[start]
                start += 1
            starts[k] = start
            counts.append(n - start)
            means.append(sums[k] / (100 * (n - start)) if n > start else 0.0)
            sums[k] += cents
        times_ms.append(time_ms)
        amounts.append(cents)
        if starts[2] > TRIM:
            gone = starts[2]
            del times_ms[:gone], amounts[:gone]
            self.starts = [start - gone for start in starts]
        return (*counts, *means)


def profile_of_history(
    history: Sequence[Sequence[int]], time_ms: int, cents: int
) -> tuple[list[Sequence[int]], tuple[float, ...]]:
    """(the history of 30 days with the transaction, counts and means before it), where state is a list of events."""
    earlier = [event for event in history if event[0] > time_ms - WINDOWS_MS[-1]]
    counts, means = [], []
    for window_ms in WINDOWS_MS:
        bound = time_ms - window_ms
        amounts = [amount for when, amount in earlier if when > bound]
        counts.append(len(amounts))
        means.append(sum(amounts) / (100 * len(amounts)) if amounts else 0.0)
    earlier.append((time_ms, cents))
    return earlier, (*counts, *means)


def inputs_of_batch(
    batch: Sequence[Transaction], times_ms: Sequence[int], cents: Sequence[int], profiles: Sequence[Sequence[float]]
) -> FloatArray:
    """The models' inputs, shape (len(batch), 30)."""
    n = len(batch)
    return inputs_of_many(
        np.asarray(cents),
        np.asarray(times_ms),
        np.fromiter((float(item.mcc) for item in batch), float, n),
        np.fromiter((item.channel == "online" for item in batch), float, n),
        np.fromiter((item.country != HOME_COUNTRY for item in batch), float, n),
        np.asarray(profiles, float),
    )
