"""Training rows: transactions whose labels were known by then, the earlier to train on, the later to check."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.features.catalogue import FEATURES
from pipeline.learning.regimes import NEVER_US
from pipeline.scoring.errors import ModelError
from schemas.times import US_PER_DAY, time_text

_YOUNG_SHARE: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSet:
    """Transactions with what they turned out to be; arrays of n rows."""

    features: NDArray[np.float64]
    """Shape (n, len(names))."""
    fraud: NDArray[np.bool_]
    weight: NDArray[np.float64]
    """Number of transactions that each row stands for."""
    event_time_us: NDArray[np.int64]
    card: NDArray[np.int64]
    """The card as any integer."""
    identity: NDArray[np.int64]
    """First word of `pipeline.engine.records.columns.digests`, by which legitimate transactions are sampled."""
    reported_us: NDArray[np.int64] | None = None
    """Time of the first report as fraud; `NEVER_US` without one. None: no training takes early reports."""
    segment_fields: Mapping[str, NDArray[np.object_]] = field(default_factory=dict)
    """Fields by which outcomes are split, each of shape (n,)."""
    names: tuple[str, ...] = FEATURES
    """Names of the columns of ``features``. Only these can be trained on."""

    @classmethod
    def of_reports(cls, reported_us: NDArray[np.int64], **columns: Any) -> Self:
        """Return transactions of which those are fraud that were ever reported, at ``reported_us``."""
        return cls(fraud=reported_us < NEVER_US, weight=np.ones(len(reported_us)), reported_us=reported_us, **columns)

    def column(self, name: str) -> NDArray[np.float64]:
        """Return a feature of all rows; shape (n,)."""
        return self.features[:, self.names.index(name)]

    def take(self, rows: NDArray[np.intp] | slice) -> Self:
        """Return some rows, without reports and without fields by which outcomes are split."""
        columns = ("features", "fraud", "weight", "event_time_us", "card", "identity")
        taken = {name: getattr(self, name)[rows] for name in columns}
        return replace(self, **taken, reported_us=None, segment_fields={})

    def wide(self, rows: NDArray[np.intp]) -> NDArray[np.float64]:
        """Return some rows as models read them, shape (k, len(FEATURES)); 0 for features that are not held."""
        if self.names == FEATURES:
            return self.features[rows]
        found = np.zeros((len(rows), len(FEATURES)))
        found[:, [FEATURES.index(name) for name in self.names]] = self.features[rows]
        return found


@dataclass(frozen=True, slots=True)
class Split:
    """Rows to train on, and the later ones to stop and calibrate on; behind them those without labels yet."""

    training: NDArray[np.intp]
    validation: NDArray[np.intp]
    validation_us: int
    """Length of the validation period."""
    young: NDArray[np.intp] = field(default_factory=lambda: np.empty(0, np.intp))
    """Rows behind both, too young for labels, up to the time of the training."""

    def newest(self, event_time_us: NDArray[np.int64]) -> tuple[NDArray[np.intp], float]:
        """Return the rows whose scores choose the threshold, and their days.

        They are the newest young ones, of at most as many days as the validation period has; `validation` itself if
        there are less than `_YOUNG_SHARE` of these days.
        """
        if len(self.young):
            last_us, checked_us = (int(event_time_us[rows].max()) for rows in (self.young, self.validation))
            length_us = min(last_us - checked_us, self.validation_us)
            if length_us >= _YOUNG_SHARE * self.validation_us:
                return self.young[event_time_us[self.young] > last_us - length_us], length_us / US_PER_DAY
        return self.validation, self.validation_us / US_PER_DAY

    def describe(self, event_time_us: NDArray[np.int64]) -> dict[str, Any]:
        """Both periods as RFC 3339 times and rows."""
        return {
            name: {
                "from": time_text(int(event_time_us[rows].min())),
                "to": time_text(int(event_time_us[rows].max())),
                "rows": len(rows),
            }
            for name, rows in (("training", self.training), ("validation", self.validation))
        }


def split_cohorts(
    event_time_us: NDArray[np.int64],
    *,
    label_delay_us: int,
    validation_us: int,
    train_from_us: int | None = None,
    known_before_us: int | None = None,
) -> Split:
    """Split by event time as it would have been possible at a time.

    Args:
        event_time_us: Microseconds since 1970, shape (n,).
        label_delay_us: Time from a transaction to its label; a target is only what had its label by then.
        validation_us: Length of the last targets, which check; the ones before train.
        train_from_us: First target. Default: the begin of the history.
        known_before_us: The time. Default: when the history ends.

    Raises:
        ModelError: A period is empty.
    """
    if len(event_time_us) == 0:
        raise ModelError("there is no transaction to train on")
    first, last = int(event_time_us.min()), int(event_time_us.max())
    until = (last if known_before_us is None else known_before_us) - label_delay_us
    # By default the history's own end: its last transaction, once its label could be known, is a target too.
    check_from = until - validation_us
    start = first if train_from_us is None else train_from_us
    training = np.flatnonzero((event_time_us >= start) & (event_time_us < check_from))
    validation = np.flatnonzero((event_time_us >= check_from) & (event_time_us <= until))
    young = np.flatnonzero((event_time_us > until) & (event_time_us <= until + label_delay_us))
    if len(training) == 0 or len(validation) == 0:
        raise ModelError(
            f"labels known by {time_text(until + label_delay_us)}, {label_delay_us / US_PER_DAY:g} days after their "
            f"transactions, leave {len(training)} transactions to train on and {len(validation)} to validate; the "
            f"history goes from {time_text(first)} to {time_text(last)}: give a longer one, or shorten the labels' "
            "delay (--label-delay-days, in a backtest --train-gap) or --validation-days"
        )
    return Split(training, validation, validation_us, young)


def rolling_folds(
    event_time_us: NDArray[np.int64], split: Split, label_delay_us: int, folds: int
) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Return rows to train on and later rows to check on, at several origins within a split.

    The newest fold checks on the split's last rows; each earlier one on as long a period before it. A fold trains on
    rows whose labels were known where its period begins: those of the age ``label_delay_us``.

    Raises:
        ModelError: The earliest fold has nothing to train on.
    """
    rows = np.sort(np.concatenate([split.training, split.validation]), kind="stable")
    time_us = event_time_us[rows]
    end_us = int(time_us.max()) + 1
    found = []
    for number in range(folds):
        until_us = end_us - number * split.validation_us
        from_us = until_us - split.validation_us
        training = rows[time_us < from_us - label_delay_us]
        checked = rows[(time_us >= from_us) & (time_us < until_us)]
        if not len(training) or not len(checked):
            raise ModelError(
                f"the history is too short for {folds} folds: give a longer one, or fewer with --tree-folds"
            )
        found.append((training, checked))
    return found
