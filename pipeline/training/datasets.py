"""Training sets from a recorded history, by the kernel that live traffic uses."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.engine.history import compute_features, digests_of, event_times_us, identities_of, labels_known
from pipeline.learning.regimes import NEVER_US, LabelRegime
from pipeline.scoring.errors import ModelError
from pipeline.training.fit import TrainingSet
from pipeline.training.segments import ATTRIBUTES

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def from_history(
    frame: pd.DataFrame,
    regime: LabelRegime,
    known_before_us: int | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> TrainingSet:
    """Compute the features of a whole history.

    Args:
        frame: Columns of `pipeline.engine.history.compute_features`, with ``fraud``.
        regime: Which labels there are. They enter the features as they become known.
        known_before_us: A fraud counts as one only if it is reported by then; by default, if it is reported at all.
        report: Called now and then with how far it is, in words.

    Raises:
        ModelError: The history has no labels.
    """
    if "fraud" not in frame:
        raise ModelError("the history has no labels; map the column that tells frauds with --map fraud=COLUMN")
    event_time_us = event_times_us(frame["event_time"])
    fraud = frame["fraud"].to_numpy(bool)
    known_at_us = regime.known_at_us(event_time_us, fraud, identities_of(frame))
    features = compute_features(frame, labels=labels_known(known_at_us, fraud), report=report)
    reported_us = np.where(fraud, known_at_us, NEVER_US)
    fraud = fraud & (known_at_us <= (NEVER_US - 1 if known_before_us is None else known_before_us))
    card = np.asarray(pd.factorize(frame["card_id"])[0], np.int64)
    identity, attributes = digests_of(frame), _attributes(frame)
    return TrainingSet(features, fraud, np.ones(len(frame)), event_time_us, card, identity, reported_us, attributes)


def _attributes(frame: pd.DataFrame) -> dict[str, NDArray[np.object_]]:
    """Return the attributes that tell transactions of a history apart."""
    found = {}
    for name in ATTRIBUTES:
        if name in frame and frame[name].nunique(dropna=False) > 1:
            values = frame[name].astype(object)
            found[name] = values.where(values.notna(), None).to_numpy()
    return found
