"""Periods that models are trained on, and their transactions with what became known about them, on disk."""

from typing import Final, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.backtest.input.span import EARLIEST_US, LATEST_US
from pipeline.backtest.input.spill import NumberColumn
from pipeline.engine.records.columns import Labels, Transactions, digest_keys, name_keys
from pipeline.features.catalogue import FEATURES
from pipeline.learning.labels import KNOWN_FRAUD, SOURCE_RANK
from pipeline.learning.regimes import LabelRegime
from pipeline.learning.report_delays import ReportDelays
from pipeline.learning.trained_labels import TrainedLabels
from pipeline.training.cohorts import Split, TrainingSet, split_cohorts
from pipeline.training.early_reports import EarlyReports
from pipeline.training.served import Labelled
from schemas.times import US_PER_SECOND

_LABEL: Final = np.dtype(list(zip(Labelled._fields, (np.int64, np.int8, np.int64, np.int8, np.int64), strict=True)))


class TrainingPeriod(NamedTuple):
    """A training's period, in microseconds since 1970-01-01T00:00:00Z."""

    from_us: int
    known_us: int
    """Time after which newly known labels are not used."""
    gap_us: int
    validation_us: int
    regime: LabelRegime | None = None
    """Regime by which labels follow from a file's truth; None if labels are recorded."""
    takes_early_reports: bool = False

    @property
    def last_us(self) -> int:
        """Event time of the last target."""
        return self.known_us - self.gap_us

    @property
    def early(self) -> EarlyReports | None:
        """Reports of transactions behind the last target; None: such transactions teach nothing."""
        if self.regime is None or not self.takes_early_reports:
            return None
        delays = ReportDelays(self.regime)
        # Within a gap that was asked for, and is wider than the delays, there are no targets.
        return EarlyReports(self.known_us, delays) if self.gap_us <= delays.maturity_us + US_PER_SECOND else None

    @property
    def labels(self) -> TrainedLabels:
        """The labels of the training, for the models' metadata."""
        return TrainedLabels(self.known_us, self.gap_us, {} if self.regime is None else self.regime.describe())

    def split(self, data: TrainingSet) -> Split:
        """The period's targets, the last of them to stop, calibrate and set thresholds on. Raises `ModelError`."""
        return split_cohorts(
            data.event_time_us,
            label_delay_us=self.gap_us,
            validation_us=self.validation_us,
            train_from_us=self.from_us,
            known_before_us=self.known_us,
        )


class TrainingRows:
    """Transactions in the order of event time with their features, and labels.

    A transaction takes ``8 * len(names) + 24`` bytes of a temporary file, which is mapped into memory, and a label
    26.
    """

    def __init__(self, from_us: int, names: tuple[str, ...] = FEATURES) -> None:
        """Keep transactions from the event time ``from_us`` on, with features ``names`` in the catalogue's order."""
        self._from_us, self._names = from_us, names
        self._held = [FEATURES.index(name) for name in names]
        self._features = NumberColumn(np.float64)
        self._times_us, self._cards, self._identity = (NumberColumn(np.int64) for _ in range(3))
        self._labels = NumberColumn(_LABEL)

    def add(self, labels: Labels, transactions: Transactions, features: NDArray[np.float64]) -> None:
        """Keep labels and transactions.

        Args:
            labels: Labels in any order; one may be added twice. Those of rules are left out.
            transactions: n transactions in the order of event time, none earlier than those before.
            features: Shape (n, len(FEATURES)), NaN for no value.
        """
        inside = transactions.event_time_us >= self._from_us
        if inside.any():
            rows = transactions if inside.all() else transactions.take(inside)
            kept = features if inside.all() else features[inside]
            self._features.add(kept if self._names == FEATURES else kept[:, self._held])
            self._times_us.add(rows.event_time_us)
            self._cards.add(name_keys(rows.card_id)[:, 0])
            self._identity.add(digest_keys(rows.card_id, rows.transaction_id)[:, 0])
        says = labels.rank != SOURCE_RANK["rule"]
        if says.any():
            kept_labels = labels if says.all() else labels.take(says)
            added = np.empty(len(kept_labels), _LABEL)
            added["identity"] = digest_keys(kept_labels.card_id, kept_labels.transaction_id)[:, 0]
            for name in Labelled._fields[1:]:
                added[name] = getattr(kept_labels, name)
            self._labels.add(added)

    def copy(self) -> "TrainingRows":
        """Return the same rows and labels; what is added to one of both does not enter the other."""
        other = TrainingRows(self._from_us, self._names)
        for name in ("_features", "_times_us", "_cards", "_identity", "_labels"):
            getattr(other, name).add(getattr(self, name).so_far())
        return other

    def training_set(self, period: TrainingPeriod) -> TrainingSet:
        """Return the transactions of a period, each a fraud if the label says so that held at the period's end."""
        return self.known_at(period.known_us, period.from_us, period.known_us)

    def known_at(self, known_us: int, from_us: int = EARLIEST_US, end_us: int = LATEST_US) -> TrainingSet:
        """Return the transactions of some event times by the labels that held at a time.

        Args:
            known_us: The time of the labels, in microseconds since 1970.
            from_us: First event time, likewise.
            end_us: Event time behind the last.

        Returns:
            Transactions in the order of event time; those that the label of that time does not call fraud are
            legitimate.
        """
        times_us = self._times_us.so_far()
        first, end = np.searchsorted(times_us, [from_us, end_us]).tolist()
        rows = slice(first, max(first, end))
        identity, labels = self._identity.so_far()[rows], self._labels.so_far()
        # Whatever nobody ever called a fraud is none, and that is most.
        labels = labels[np.isin(labels["identity"], labels["identity"][labels["known"] == KNOWN_FRAUD])]
        reported_us, _ = Labelled._make(labels[name] for name in Labelled._fields).reports_of(identity, known_us)
        return TrainingSet.of_reports(
            features=self._features.so_far().reshape(-1, len(self._names))[rows],
            event_time_us=times_us[rows],
            card=np.asarray(pd.factorize(self._cards.so_far()[rows])[0], np.int64),
            identity=identity,
            reported_us=reported_us,
            names=self._names,
        )
