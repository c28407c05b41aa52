"""Training sets from a recorded history, by the kernel that live traffic uses."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.engine.history import compute_features, digests_of, event_times_us, identities_of, labels_known
from pipeline.features.catalogue import FEATURES
from pipeline.learning.regimes import NEVER_US, LabelRegime
from pipeline.scoring.errors import ModelError
from pipeline.training.fit import TrainingSet
from pipeline.training.segments import SEGMENT_FIELDS

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def from_history(
    frame: pd.DataFrame,
    regime: LabelRegime,
    known_before_us: int | None = None,
    names: tuple[str, ...] = FEATURES,
    report: Callable[[str], None] = lambda _: None,
) -> TrainingSet:
    """Compute the features of a whole history.

    Args:
        frame: Columns of `pipeline.engine.history.compute_features`, with ``fraud``.
        regime: Which labels there are. They enter the features as they become known.
        known_before_us: A fraud counts as one only if it is reported by then; by default, if it is reported at all.
        names: The features to hold, in the order of the catalogue. A million rows of all of them take 0.6 GB.
        report: Called now and then with how far it is, in words.

    Raises:
        ModelError: The history has no labels.
    """
    if "fraud" not in frame:
        raise ModelError("the history has no labels; map the column that tells frauds with --map fraud=COLUMN")
    event_time_us = event_times_us(frame["event_time"])
    fraud = frame["fraud"].to_numpy(bool)
    identity = identities_of(frame)
    known_at_us = regime.known_at_us(event_time_us, fraud, identity)
    corrected_at_us = regime.corrected_at_us(known_at_us, identity)
    labels = labels_known(known_at_us, fraud, identity, corrected_at_us)
    features = compute_features(frame, labels=labels, names=names, report=report)
    # A fraud that was called legitimate first is reported by the correction; a false report holds until its own.
    by_us = NEVER_US - 1 if known_before_us is None else known_before_us
    wrong = corrected_at_us < NEVER_US
    reported_us = np.where(fraud, np.where(wrong, corrected_at_us, known_at_us), NEVER_US)
    false_report = wrong & ~fraud & (corrected_at_us > by_us)
    reported_us[false_report] = known_at_us[false_report]
    fraud = reported_us <= by_us
    card = np.asarray(pd.factorize(frame["card_id"])[0], np.int64)
    return TrainingSet(
        features=features,
        fraud=fraud,
        weight=np.ones(len(frame)),
        event_time_us=event_time_us,
        card=card,
        identity=digests_of(frame),
        reported_us=reported_us,
        segment_fields=_segment_fields(frame),
        names=names,
    )


def _segment_fields(frame: pd.DataFrame) -> dict[str, NDArray[np.object_]]:
    """Return the fields that distinguish transactions of a history."""
    found = {}
    for name in SEGMENT_FIELDS:
        if name in frame and frame[name].nunique(dropna=False) > 1:
            values = frame[name].astype(object)
            found[name] = values.where(values.notna(), None).to_numpy()
    return found
