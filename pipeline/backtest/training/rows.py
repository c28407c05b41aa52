"""Transactions to train on with what became known about them, on disk."""

from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.backtest.input.span import EARLIEST_US, LATEST_US
from pipeline.backtest.input.spill import NumberColumn
from pipeline.backtest.training.period import TrainingPeriod
from pipeline.engine.records.columns import Labels, Transactions, digest_keys, name_keys
from pipeline.features.catalogue import FEATURES
from pipeline.learning.labels import FRAUD, KNOWN, SOURCE_RANK, holding
from pipeline.learning.regimes import NEVER_US
from pipeline.training.fit import TrainingSet

_FRAUD: Final = KNOWN.index(FRAUD)
_LABEL: Final = np.dtype(
    [
        ("high", np.int64), ("low", np.int64), ("rank", np.int64), ("labelled_at_us", np.int64), ("known", np.int64),
        ("known_at_us", np.int64),
    ]
)  # fmt: skip


class TrainingRows:
    """Transactions in the order of event time with their features, and labels.

    A transaction takes ``8 * len(names) + 32`` bytes of a temporary file, which is mapped into memory, and a label
    48.
    """

    def __init__(self, from_us: int, names: tuple[str, ...] = FEATURES) -> None:
        """Keep transactions from the event time ``from_us`` on, with features ``names`` in the catalogue's order."""
        self._from_us, self._names = from_us, names
        self._held = [FEATURES.index(name) for name in names]
        self._features = NumberColumn(np.float64)
        self._times_us, self._cards = NumberColumn(np.int64), NumberColumn(np.int64)
        self._high, self._low = NumberColumn(np.int64), NumberColumn(np.int64)
        self._labels = NumberColumn(_LABEL)

    def add(self, labels: Labels, transactions: Transactions, features: NDArray[np.float64]) -> None:
        """Keep labels, and transactions that are none of the earliest.

        Args:
            labels: In any order; those of rules are left out. A label may be added twice.
            transactions: n of them, none earlier than those before.
            features: Shape (n, len(FEATURES)).
        """
        inside = transactions.event_time_us >= self._from_us
        if inside.any():
            rows = transactions if inside.all() else transactions.take(inside)
            digests = digest_keys(rows.card_id, rows.transaction_id)
            kept = features if inside.all() else features[inside]
            self._features.add(kept if self._names == FEATURES else kept[:, self._held])
            self._times_us.add(rows.event_time_us)
            self._cards.add(name_keys(rows.card_id)[:, 0])
            self._high.add(digests[:, 0])
            self._low.add(digests[:, 1])
        says = labels.rank != SOURCE_RANK["rule"]
        if says.any():
            self._labels.add(_labels(labels if says.all() else labels.take(says)))

    def copy(self) -> "TrainingRows":
        """Return the same rows and labels; what is added to one of both does not enter the other."""
        other = TrainingRows(self._from_us, self._names)
        for name in ("_features", "_times_us", "_cards", "_high", "_low", "_labels"):
            getattr(other, name).add(getattr(self, name).so_far())
        return other

    def training_set(self, period: TrainingPeriod) -> TrainingSet:
        """Return the transactions of a period, each a fraud if the label says so that held at the period's end."""
        return self.known_at(period.known_us, period.from_us, min(period.last_event_us + 1, period.known_us))

    def known_at(self, known_us: int, from_us: int = EARLIEST_US, end_us: int = LATEST_US) -> TrainingSet:
        """Return the transactions from a time on and before another, by the labels that held at ``known_us``."""
        times_us = self._times_us.so_far()
        first, end = np.searchsorted(times_us, [from_us, end_us]).tolist()
        rows = slice(first, max(first, end))
        event_times_us = times_us[rows]
        reported_us = self._reported_us(rows, known_us)
        return TrainingSet(
            features=self._features.so_far().reshape(-1, len(self._names))[rows],
            fraud=reported_us < NEVER_US,
            weight=np.ones(len(event_times_us)),
            event_time_us=event_times_us,
            card=np.asarray(pd.factorize(self._cards.so_far()[rows])[0], np.int64),
            identity=self._high.so_far()[rows],
            reported_us=reported_us,
            names=self._names,
        )

    def _reported_us(self, rows: slice, known_us: int) -> NDArray[np.int64]:
        """Return when each fraud among some rows was first said to be one, by what was known at a time.

        Shape (rows,); `NEVER_US` for a row that is no fraud by the label that held then.
        """
        high, low = self._high.so_far()[rows], self._low.so_far()[rows]
        reported_us = np.full(len(high), NEVER_US)
        held, first_us = self._found_frauds(known_us)
        # Few of all rows: the first word tells most of them apart, the second one the rest.
        at = np.flatnonzero(np.isin(high, held["high"]))
        positions = pd.MultiIndex.from_arrays([held["high"], held["low"]]).get_indexer(
            pd.MultiIndex.from_arrays([high[at], low[at]])
        )
        reported_us[at[positions >= 0]] = first_us[positions[positions >= 0]]
        return reported_us

    def _found_frauds(self, known_us: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Return the labels that held at a time and say fraud, and when the first label of each said so."""
        labels = self._labels.so_far()
        labels = labels[labels["known_at_us"] <= known_us]
        # Whatever nobody ever called a fraud is none, and that is most.
        labels = labels[np.isin(labels["high"], labels["high"][labels["known"] == _FRAUD])]
        rows = holding([labels["low"], labels["high"]], labels["rank"], labels["labelled_at_us"], labels["known"])
        held = labels[rows]
        held = held[held["known"] == _FRAUD]
        frauds = labels[labels["known"] == _FRAUD]
        first_us = pd.Series(frauds["known_at_us"]).groupby([frauds["high"], frauds["low"]]).min()
        return held, first_us.reindex(pd.MultiIndex.from_arrays([held["high"], held["low"]])).to_numpy(np.int64)


def _labels(labels: Labels) -> NDArray[Any]:
    rows = np.empty(len(labels), _LABEL)
    digests = digest_keys(labels.card_id, labels.transaction_id)
    rows["high"], rows["low"], rows["rank"] = digests[:, 0], digests[:, 1], labels.rank
    rows["labelled_at_us"], rows["known"] = labels.labelled_at_us, labels.known
    rows["known_at_us"] = labels.known_at_us
    return rows
