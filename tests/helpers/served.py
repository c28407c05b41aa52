"""Decisions of a simulated history, as `features` and `accepted-labels` have them and as columns."""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.engine.encoding.blocks import Block, Sources, pack_block
from pipeline.engine.records.accepted_labels import accept
from pipeline.engine.scores.feature_blocks import LAYOUT, NUMBERS, OWN_FEATURES
from pipeline.features.catalogue import FEATURES, KERNEL_VERSION
from pipeline.learning.labels import NO_LABEL, SOURCE_RANK
from pipeline.learning.regimes import NEVER_US
from pipeline.replay.messages import event_times_us
from pipeline.scoring.blend import sigmoid
from pipeline.scoring.lightgbm_model import LightGBMModel
from pipeline.simulation.simulator import make_profiles, simulate_days
from pipeline.training.served import ServedRows
from schemas.records import Record
from schemas.times import US_PER_DAY
from schemas.topics import ACCEPTED_LABELS, DECISION_FEATURES, LABELS
from tests.helpers.features import compute_features
from tests.helpers.live import moment
from tests.helpers.logs import LABEL_OPTIONS, Log, label, to

BLOCK_ROWS = 400
DELAY_US = 7 * US_PER_DAY
"""After which a fraud is reported."""


class History(NamedTuple):
    """Transactions with their features; n rows in the order of event time."""

    frame: pd.DataFrame
    features: NDArray[np.float64]
    event_time_us: NDArray[np.int64]
    fraud: NDArray[np.bool_]

    def served(self, model: LightGBMModel, until_us: int | None = None) -> ServedRows:
        """Return the rows as a version served them alone, with the frauds that are reported by ``until_us``."""
        n, until_us = len(self.frame), int(self.event_time_us[-1]) if until_us is None else until_us
        logit = model.logit(self.features)
        reported_us = np.where(self.fraud, self.event_time_us + DELAY_US, NEVER_US)
        reported_us[reported_us > until_us] = NEVER_US
        return ServedRows(
            self.features,
            self.event_time_us,
            np.asarray(pd.factorize(self.frame["card_id"])[0], np.int64),
            np.arange(n),
            sigmoid(logit),
            logit,
            np.zeros(n, np.int32),
            self.event_time_us // 1_000,
            reported_us,
            np.where(reported_us < NEVER_US, SOURCE_RANK["customer"], NO_LABEL).astype(np.int8),
            (model.version,),
        )


@cache
def simulated(days: int, seed: int = 1, cards: int = 300, merchants: int = 600) -> History:
    """Return a history of some 2 transactions a card and day."""
    frame = simulate_days(make_profiles(np.random.default_rng(seed), cards, merchants), seed, 0, days)
    frame = frame[frame["amount_minor"] > 0].reset_index(drop=True)
    features = compute_features(frame, label_delay_s=DELAY_US / 1e6)
    return History(frame, features, event_times_us(frame), frame["fraud"].to_numpy(bool))


def feature_records(
    history: History, model: LightGBMModel, policy: str = "policy", rows: slice = slice(None), partitions: int = 2
) -> list[Record]:
    """Return the blocks that a score agent writes of some rows, decided when they happened."""
    frame, found = history.frame[rows], []
    features, time_us = history.features[rows], history.event_time_us[rows]
    numbers = np.arange(len(history.frame))[rows]
    logit = model.logit(features)
    numbered = np.column_stack((logit, logit, sigmoid(logit), features))
    texts = [[text.encode() for text in frame[column]] for column in ("transaction_id", "card_id", "merchant_id")]
    names = [*NUMBERS, *OWN_FEATURES, b"profiled", b"transactions", model.version.encode(), b"river@0"]
    names += [policy.encode(), b"rates"]
    first_code = len(NUMBERS) + len(FEATURES) + 1
    for first in range(0, len(frame), BLOCK_ROWS):
        source = slice(first, first + BLOCK_ROWS)
        cut = [column[source] for column in texts]
        n = len(cut[0])
        codes = np.repeat(np.arange(first_code, first_code + len(LAYOUT.codes), dtype=np.uint8)[:, None], n, axis=1)
        block = Block(
            KERNEL_VERSION,
            names,
            Sources(numbers[source].astype(np.int64), np.zeros(n, np.int32), np.full(n, first_code - 1, np.uint8)),
            np.array([time_us[source], np.full(n, 1_000), numbers[source]], np.int64),
            numbered[source],
            np.zeros((3, n), np.int32),
            np.array([[len(text) for text in column] for column in cut], np.int32),
            codes,
            b"".join(text for column in cut for text in column),
            LAYOUT,
        )
        number = first // BLOCK_ROWS
        at_ms = int(time_us[source][-1]) // 1_000
        found.append(
            Record(DECISION_FEATURES.name, number % partitions, number // partitions, at_ms, None, pack_block(block))
        )
    return found


def label_records(
    history: History, rows: Sequence[int], known: str = "fraud", delay_us: int = DELAY_US
) -> list[Record]:
    """Return accepted labels of some rows, each reported in time."""
    log = Log(LABELS)
    for row in rows:
        item = history.frame.iloc[row]
        at = moment(int(history.event_time_us[row]) + delay_us)
        log.append(label(row, at, known, transaction_id=item["transaction_id"], card_id=item["card_id"]), at)
    outputs = to(ACCEPTED_LABELS, accept(log.records, LABEL_OPTIONS))
    return [
        Record(ACCEPTED_LABELS.name, 0, number, 0, output.key, output.value, output.headers)
        for number, output in enumerate(outputs)
    ]
