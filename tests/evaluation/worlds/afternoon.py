"""Features that an engineer writes in an afternoon: the Handbook's 15, and 12 obvious ones beside them.

Ages of cards and merchants that grow without end are left out: they tell the time.
"""

from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from schemas.times import US_PER_DAY, US_PER_HOUR, US_PER_SECOND
from tests.evaluation.published import handbook_features, trailing

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
HANDBOOK: Final = (
    "amount", "weekend", "night", "card count 1d", "card mean 1d", "card count 7d", "card mean 7d", "card count 30d",
    "card mean 30d", "merchant count 1d", "merchant risk 1d", "merchant count 7d", "merchant risk 7d",
    "merchant count 30d", "merchant risk 30d",
)  # fmt: skip
"""The Handbook's features; counts and risks of merchants are those of seven days before."""
FURTHER: Final = (
    "hour", "seconds since the card's last", "card count 1h", "new at the merchant", "amount to the card's mean",
    "amount to the merchant's mean", "merchant's count of the day", "strangers of the day",
    "card's least amount of a day", "distance from the card's hours", "strangers of 30 days", "three days to thirty",
)  # fmt: skip
_LEAST_EVENTS: Final = 5
"""Transactions of a card from which its hours are known."""


def afternoon_features(frame: pd.DataFrame) -> Floats:
    """Return `HANDBOOK` and `FURTHER`, shape (n, 27), of a frame of the canonical columns in order of time."""
    of_handbook = pd.DataFrame(
        {
            "TX_DATETIME": frame["event_time"].dt.tz_convert(None),
            "TX_AMOUNT": frame["amount_minor"] / 100,
            "TX_FRAUD": frame["fraud"],
            "CUSTOMER_ID": pd.factorize(frame["card_id"])[0],
            "TERMINAL_ID": pd.factorize(frame["merchant_id"])[0],
        }
    )
    return np.column_stack([handbook_features(of_handbook), _further(of_handbook)])


def _further(frame: pd.DataFrame) -> Floats:
    time_us = frame["TX_DATETIME"].to_numpy("datetime64[us]").astype(np.int64)
    amount = frame["TX_AMOUNT"].to_numpy(float)
    card, merchant = (frame[name].to_numpy(np.int64) for name in ("CUSTOMER_ID", "TERMINAL_ID"))
    hour = time_us % US_PER_DAY / US_PER_HOUR
    new = (~pd.Series(card * (merchant.max() + 1) + merchant).duplicated()).to_numpy(float)
    of_card, of_merchant = frame.groupby("CUSTOMER_ID"), frame.groupby("TERMINAL_ID")
    spent, times = trailing(card, time_us, amount, 30)
    sold, sales = of_merchant["TX_AMOUNT"].cumsum().to_numpy() - amount, of_merchant.cumcount().to_numpy()
    strangers, of_day = trailing(merchant, time_us, new, 1)
    strangers_30d, of_month = trailing(merchant, time_us, new, 30)
    _, of_three = trailing(merchant, time_us, new, 3)
    since = pd.Series(time_us).groupby(card).diff().to_numpy() / US_PER_SECOND
    columns = [
        hour, since, _count_of_hour(card, time_us), new, amount / np.maximum(spent / times, 0.01),
        amount / np.maximum(np.divide(sold, sales, out=np.full(len(frame), np.nan), where=sales > 0), 0.01),
        of_day, strangers / of_day, _least_of_day(card, time_us, amount), _apart(card, hour, of_card.cumcount()),
        strangers_30d / of_month, of_three / np.maximum(of_month / 10, 0.3),
    ]  # fmt: skip
    return np.column_stack(columns)


def _count_of_hour(card: Ints, time_us: Ints) -> Floats:
    """Return the number of the card's transactions within an hour, a transaction's own included."""
    far = int(time_us.max() - time_us.min()) + US_PER_DAY
    line = card * far + time_us - time_us.min()
    order = np.argsort(line, kind="stable")
    ordered = line[order]
    count = np.empty(len(line))
    count[order] = np.arange(1, len(line) + 1) - np.searchsorted(ordered, ordered - US_PER_HOUR, side="right")
    return count


def _least_of_day(card: Ints, time_us: Ints, amount: Floats) -> Floats:
    """Return the card's least amount within a day, a transaction's own included."""
    order = np.argsort(card, kind="stable")
    ordered, time_us, amount = card[order], time_us[order], amount[order]
    least, row, back = amount.copy(), np.arange(len(order)), 0
    while len(row):
        back += 1
        row = row[row >= back]
        earlier = row - back
        within = (ordered[earlier] == ordered[row]) & (time_us[earlier] > time_us[row] - US_PER_DAY)
        row, earlier = row[within], earlier[within]
        least[row] = np.minimum(least[row], amount[earlier])
    found = np.empty_like(least)
    found[order] = least
    return found


def _apart(card: Ints, hour: Floats, earlier: "pd.Series[int]") -> Floats:
    """Return 1 minus the cosine between the hour and the mean direction of the card's earlier hours on the clock."""
    angle = hour / 12 * np.pi
    cosine, sine = np.cos(angle), np.sin(angle)
    sums = pd.DataFrame({"cosine": cosine, "sine": sine}).groupby(card).cumsum().to_numpy()
    of_card, across = sums[:, 0] - cosine, sums[:, 1] - sine
    length = np.hypot(of_card, across)
    known = (earlier.to_numpy() >= _LEAST_EVENTS) & (length > 0)
    along = np.divide(cosine * of_card + sine * across, length, out=np.full(len(hour), np.nan), where=known)
    return 1 - along
