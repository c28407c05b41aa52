"""Features of a frame as a training of a file computes them, and when its labels become known."""

from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.backtest import frame_tables
from pipeline.backtest.training.training_history import TrainingHistory, read_history
from pipeline.engine.cards.card_options import CardOptions
from pipeline.learning.regimes import NEVER_US, LabelRegime
from schemas.times import US_PER_DAY, US_PER_SECOND
from tests.contract.records import RATES

OPTIONS: Final = CardOptions(RATES, 300 * US_PER_SECOND, 120 * US_PER_DAY, 120 * US_PER_DAY, 1)


def history_of(frame: pd.DataFrame, regime: LabelRegime, **more: Any) -> TrainingHistory:
    """Return a frame of which workers refuse nothing, as it is trained on.

    ``amount_minor`` stands for an amount in EUR where the frame has none.
    """
    if "amount" not in frame:
        frame = frame.assign(amount=frame["amount_minor"] / 100, currency="EUR")
    found = read_history(frame_tables(frame), regime, OPTIONS, **more)
    assert len(found.number) == len(frame), found.refused
    return found


def compute_features(frame: pd.DataFrame, label_delay_s: float | None = 7 * 86_400.0) -> NDArray[np.float64]:
    """Return the features of a frame, shape (n, len(FEATURES)); each label comes after the delay, or none at all."""
    regime = LabelRegime(delay_days=(label_delay_s or 0.0) / 86_400)
    if label_delay_s is None:
        frame, regime = frame.assign(fraud=False), LabelRegime(reported="frauds-only")
    return history_of(frame, regime).training_set().features


class KnownLabels(NamedTuple):
    """Labels in the order in which they became known."""

    row: NDArray[np.intp]
    """Number of the labelled transaction."""
    fraud: NDArray[np.bool_]
    known_at_us: NDArray[np.int64]


def labels_known(
    known_at_us: NDArray[np.int64], fraud: NDArray[np.bool_], corrected_at_us: NDArray[np.int64]
) -> KnownLabels:
    """Return the labels of transactions, of which those say the opposite first that are corrected."""
    rows, corrected = np.flatnonzero(known_at_us < NEVER_US), np.flatnonzero(corrected_at_us < NEVER_US)
    row = np.concatenate([rows, corrected])
    said = np.concatenate([fraud[rows] ^ (corrected_at_us[rows] < NEVER_US), fraud[corrected]])
    at_us = np.concatenate([known_at_us[rows], corrected_at_us[corrected]])
    order = np.argsort(at_us, kind="stable")
    return KnownLabels(row[order], said[order], at_us[order])
