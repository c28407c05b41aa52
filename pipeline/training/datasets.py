"""Training sets: from a recorded history by the kernel, or from examples as they were served."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.engine.history import compute_features, event_times_us, identities_of, labels_known
from pipeline.features.catalogue import FEATURES, KERNEL_VERSION
from pipeline.learning.regimes import NEVER_US, LabelRegime
from pipeline.scoring.errors import ModelError
from pipeline.scoring.lessons import TARGETS
from pipeline.training.fit import TrainingSet
from schemas.messages import Example

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def from_history(frame: pd.DataFrame, regime: LabelRegime, known_before_us: int | None = None) -> TrainingSet:
    """Compute the features of a whole history.

    Args:
        frame: Columns of `pipeline.engine.history.compute_features`, with ``fraud``.
        regime: Which labels there are. They enter the features as they become known.
        known_before_us: A fraud counts as one only if it is reported by then; by default, if it is reported at all.

    Raises:
        ModelError: The history has no labels.
    """
    if "fraud" not in frame:
        raise ModelError("the history has no labels; map the column that tells frauds with --map fraud=COLUMN")
    event_time_us = event_times_us(frame["event_time"])
    fraud = frame["fraud"].to_numpy(bool)
    known_at_us = regime.known_at_us(event_time_us, fraud, identities_of(frame))
    features = compute_features(frame, labels=labels_known(known_at_us, fraud))
    fraud = fraud & (known_at_us <= (NEVER_US - 1 if known_before_us is None else known_before_us))
    card = np.asarray(pd.factorize(frame["card_id"])[0], np.int64)
    return TrainingSet(features, fraud, np.ones(len(frame)), event_time_us, card)


def from_examples(
    examples: Iterable[Example], *, known_before: datetime | None = None, counts: dict[str, int] | None = None
) -> TrainingSet:
    """What was served, with what it turned out to be: the last word on each transaction, ordered by event time.

    Left out are examples known at or after ``known_before``, those of a rule, and those of another kernel version,
    whose features mean something else. ``counts`` gets how many there are of each label and of each source of labels.
    Raises `ModelError` when nothing is left.
    """
    latest: dict[tuple[str, str], Example] = {}
    other_kernel = 0
    for example in examples:
        if example.versions.kernel != KERNEL_VERSION:
            other_kernel += 1
        elif (
            example.label in TARGETS
            and example.label_source != "rule"
            and (known_before is None or example.known_at < known_before)
        ):
            key = (example.card_id, example.transaction_id)
            before = latest.get(key)
            if before is None or example.revision >= before.revision:
                latest[key] = example
    if not latest:
        raise ModelError(
            "the examples topic holds nothing to train on"
            + (f" ({other_kernel} examples are of another kernel version)" if other_kernel else "")
            + ": examples are written once labels come or transactions mature; train from a file until then"
        )
    if counts is not None:
        for example in latest.values():
            for name in (example.label, f"by {example.label_source or 'nobody'}"):
                counts[name] = counts.get(name, 0) + 1
    ordered = sorted(latest.values(), key=lambda example: (example.event_time, example.card_id, example.transaction_id))
    features = np.full((len(ordered), len(FEATURES)), np.nan)
    for row, example in zip(features, ordered, strict=True):
        row[:] = [np.nan if (value := example.features.get(name)) is None else value for name in FEATURES]
    return TrainingSet(
        features,
        np.array([TARGETS[example.label] for example in ordered]),
        np.array([example.weight for example in ordered], np.float64),
        _microseconds(ordered),
        np.asarray(pd.factorize(np.array([example.card_id for example in ordered], object))[0], np.int64),
    )


def _microseconds(examples: list[Example]) -> NDArray[np.int64]:
    unit = timedelta(microseconds=1)
    return np.array([(example.event_time - _EPOCH) // unit for example in examples], np.int64)
