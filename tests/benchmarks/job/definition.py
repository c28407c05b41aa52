"""What job (a) is: one hop, at-least-once, one decision for each transaction.

The input topic holds JSON transactions (wire contract of ``transactions``) in 4 partitions, placed by murmur2 of the
key ``card_id``, and in order of event time within each partition, so that an engine need not handle late events.

For a transaction with event time ``t`` (whole milliseconds since 1970-01-01T00:00:00Z) the window of W milliseconds
holds the transactions of the same card that stand earlier in the log and whose event time ``u`` satisfies
``t - W < u <= t``. The transaction itself is not in its own windows. Of each window the number of transactions and the
mean of their amounts count; the mean of an empty window is 0. Amounts are summed as whole cents, and
``mean = sum_cents / (100 * count)``, so that the order of additions cannot show.

From these six values and the transaction itself come the 30 ``INPUTS`` of both models. They use only operations that
IEEE 754 rounds exactly, so that every language gets the same bits. The decision holds ``DECISION_FIELDS``, as JSON,
with the card as key; ``score`` is the mean of both models' probabilities.

This module needs only the standard library, NumPy, LightGBM and River: peers import it in their own environment.
"""

import json
from math import sqrt
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

PARTITIONS: Final = 4
DAY_MS: Final = 86_400_000
WINDOWS_MS: Final = (DAY_MS, 7 * DAY_MS, 30 * DAY_MS)
HOME_COUNTRY: Final = "FR"

INPUTS: Final = (
    "amount",
    "sqrt_amount",
    "fourth_root_amount",
    "odd_cents",
    "hour",
    "hours_from_noon",
    "hours_from_noon_squared",
    "weekday",
    "night",
    "weekend",
    "count_1d",
    "count_7d",
    "count_30d",
    "mean_1d",
    "mean_7d",
    "mean_30d",
    "amount_to_mean_1d",
    "amount_to_mean_7d",
    "amount_to_mean_30d",
    "amount_less_mean_1d",
    "amount_less_mean_7d",
    "amount_less_mean_30d",
    "count_1d_to_7d",
    "count_7d_to_30d",
    "mcc",
    "online",
    "abroad",
    "amount_online",
    "amount_night",
    "sqrt_mean_30d",
)
PROFILE: Final = INPUTS[10:16]
"""Counts and means over 1, 7 and 30 days."""
DECISION_FIELDS: Final = ("transaction_id", "card_id", "score", "lightgbm", "river", *PROFILE)

MODEL_FILE: Final = "model.txt"
RIVER_FILE: Final = "river.json"
JOB_FILE: Final = "job.json"

FloatArray = npt.NDArray[np.float64]


def inputs_of_one(
    amount: float, cents: int, time_ms: int, mcc: float, online: float, abroad: float, profile: tuple[float, ...]
) -> list[float]:
    """The 30 inputs of one transaction, in the order of ``INPUTS``; ``profile`` as in ``PROFILE``."""
    count_1d, count_7d, count_30d, mean_1d, mean_7d, mean_30d = profile
    hour = time_ms % DAY_MS / 3_600_000
    from_noon = hour - 12
    weekday = (time_ms // DAY_MS + 3) % 7
    night = 1.0 if hour < 6 else 0.0
    root = sqrt(amount)
    return [
        amount,
        root,
        sqrt(root),
        float(cents % 100),
        hour,
        abs(from_noon),
        from_noon * from_noon,
        float(weekday),
        night,
        1.0 if weekday >= 5 else 0.0,
        *profile,
        amount / mean_1d if mean_1d else 0.0,
        amount / mean_7d if mean_7d else 0.0,
        amount / mean_30d if mean_30d else 0.0,
        amount - mean_1d,
        amount - mean_7d,
        amount - mean_30d,
        count_1d / count_7d if count_7d else 0.0,
        count_7d / count_30d if count_30d else 0.0,
        mcc,
        online,
        abroad,
        amount * online,
        amount * night,
        sqrt(mean_30d),
    ]


def inputs_of_many(
    cents: npt.NDArray[np.int64],
    time_ms: npt.NDArray[np.int64],
    mcc: FloatArray,
    online: FloatArray,
    abroad: FloatArray,
    profile: FloatArray,
) -> FloatArray:
    """The inputs of n transactions, shape (n, 30), row-major; ``profile`` has shape (n, 6)."""
    rows = np.empty((len(cents), len(INPUTS)))
    amount = cents / 100
    counts, means = profile[:, :3], profile[:, 3:]
    hour = time_ms % DAY_MS / 3_600_000
    weekday = (time_ms // DAY_MS + 3) % 7
    night = hour < 6
    rows[:, 0] = amount
    np.sqrt(amount, out=rows[:, 1])
    np.sqrt(rows[:, 1], out=rows[:, 2])
    rows[:, 3] = cents % 100
    rows[:, 4] = hour
    np.abs(hour - 12, out=rows[:, 5])
    rows[:, 6] = (hour - 12) * (hour - 12)
    rows[:, 7] = weekday
    rows[:, 8] = night
    rows[:, 9] = weekday >= 5
    rows[:, 10:16] = profile
    rows[:, 16:19] = 0
    np.divide(amount[:, None], means, out=rows[:, 16:19], where=means > 0)
    np.subtract(amount[:, None], means, out=rows[:, 19:22])
    rows[:, 22:24] = 0
    np.divide(counts[:, :2], counts[:, 1:], out=rows[:, 22:24], where=counts[:, 1:] > 0)
    rows[:, 24] = mcc
    rows[:, 25] = online
    rows[:, 26] = abroad
    rows[:, 27] = amount * online
    rows[:, 28] = amount * night
    np.sqrt(means[:, 2], out=rows[:, 29])
    return rows


def load_lightgbm(workdir: Path) -> Any:
    """The ``lightgbm.Booster`` of the job."""
    import lightgbm

    return lightgbm.Booster(model_file=str(workdir / MODEL_FILE))


def load_river(workdir: Path) -> Any:
    """The ``river.linear_model.LogisticRegression`` of the job."""
    from river import linear_model, utils

    numbers = json.loads((workdir / RIVER_FILE).read_text(encoding="utf-8"))
    model = linear_model.LogisticRegression(intercept_init=numbers["intercept"])
    model._weights = utils.VectorDict(numbers["weights"])
    return model
