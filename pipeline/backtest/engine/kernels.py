"""The kernels of all partitions over columns: from a chunk of records in their order to decisions.

What is decided is what the live kernels decide when every record is carried through the card and the score agent before
the next one is read; ``docs/decisions/0025-columnar-backtests.md`` says what follows for other ways to cut batches.
"""

from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.backtest.input.order import Chunk
from pipeline.engine.cards.card import CardOptions
from pipeline.engine.cards.card_join import Arrivals, CardJoin
from pipeline.engine.cards.joins import (
    COUNTS,
    DUPLICATE_DIFFERS,
    NO_TRANSACTION,
    SAME,
    Retention,
    contradicts,
    not_joined,
)
from pipeline.engine.cards.pending import LabelBatch, MemoryPending
from pipeline.engine.cards.transaction_index import MemoryIndex
from pipeline.engine.encoding.blocks import KNOWN_NAMES
from pipeline.engine.records.columns import (
    Reject,
    Transactions,
    content_keys,
    digest_keys,
    identities,
    name_keys,
    no_labels,
)
from pipeline.engine.records.partitioner import partitions_of
from pipeline.engine.scores.decisions import Decisions, decided
from pipeline.engine.scores.merchants import behind, labels_log, transactions_log
from pipeline.engine.scores.models import ActiveModels
from pipeline.features.catalogue import CARD_FEATURES, FEATURES
from pipeline.features.kernel import CardWindows, MerchantWindows
from pipeline.learning.labels import KNOWN

_WINDOW_KNOWN: Final = np.array([KNOWN_NAMES.index(name) for name in KNOWN], np.int8)
"""Number of each value of `KNOWN`, as the merchants' windows have it."""


class _EntityNames(NamedTuple):
    """Names of n transactions, by which windows and partitions go."""

    card: NDArray[np.int64]
    """Shape (n, 2)."""
    partition: NDArray[np.int64]
    merchant: NDArray[np.int64]
    """Shape (n, 2)."""
    merchant_partition: NDArray[np.int64]


class _Following(NamedTuple):
    """Labels that change what is known, as they stand in the merchants' log; shape (k,) each."""

    position: NDArray[np.int64]
    """Position of the record behind which each stands: its own, or its transaction's."""
    identity: NDArray[np.uint64]
    event_time_us: NDArray[np.int64]
    merchant: NDArray[np.int64]
    """Shape (k, 3): `name_keys`, and the partition."""
    known: NDArray[np.int64]
    """Index of `pipeline.learning.labels.KNOWN`."""
    known_at_us: NDArray[np.int64]


class Profiled(NamedTuple):
    """A chunk's transactions that are no repeats, n of them, with what the windows know of them."""

    transactions: Transactions
    position: NDArray[np.int64]
    """Shape (n,): where each stands among all records of the chunk."""
    partition: NDArray[np.int64]
    """Partition of the card."""
    merchant_partition: NDArray[np.int64]
    wait_us: NDArray[np.int64]
    """What the wait clock of the card's partition showed."""
    features: NDArray[np.float64]
    """Shape (n, len(FEATURES)), NaN for no value."""
    case_start_us: NDArray[np.int64]
    case_sequence: NDArray[np.int64]
    duplicates: int
    label_outcomes: Counter[str]
    refused: list[Reject]
    """Labels that have waited in vain, and repeats with other content."""


class Engine:
    """State of a whole pipeline of ``options.partitions`` partitions: windows, index, labels that wait."""

    def __init__(self, options: CardOptions) -> None:
        self._options = options
        numbers = range(options.partitions)
        self._retention = Retention(options.dedup_horizon_us, options.label_horizon_us)
        self._joins = [CardJoin(MemoryIndex(), MemoryPending()) for _ in numbers]
        self._cards = [CardWindows() for _ in numbers]
        self._merchants = [MerchantWindows() for _ in numbers]

    def close(self) -> None:
        """Let go of the state."""
        for windows in (*self._cards, *self._merchants):
            windows.close()

    def decide(self, models: ActiveModels, chunk: Chunk, rejects: Sequence[Reject] = ()) -> Decisions:
        """Let the records of ``chunk`` enter the state, and decide about its transactions by ``models``.

        ``rejects`` are passed on, with the labels behind them that have waited in vain.
        """
        found = self.profile(chunk)
        return Decisions(
            transactions=found.transactions,
            position=found.position,
            partition=found.partition,
            merchant_partition=found.merchant_partition,
            wait_us=found.wait_us,
            features=found.features,
            **decided(models, found.features, found.transactions.identities)._asdict(),
            case_start_us=found.case_start_us,
            case_sequence=found.case_sequence,
            models=models,
            base_currency=self._options.rates.base,
            rates_version=self._options.rates.version,
            duplicates=found.duplicates,
            label_outcomes=found.label_outcomes,
            rejects=(*rejects, *found.refused),
        )

    def profile(self, chunk: Chunk) -> Profiled:
        """Let the records of ``chunk`` enter the state; nothing is decided."""
        taken, position, names = chunk.transactions, chunk.position, self._names(chunk.transactions)
        accepted, wait_us, following, outcomes, refused = self._join(chunk, names)
        left_out = len(taken) - int(np.count_nonzero(accepted))
        duplicates = left_out - sum(reject.code == DUPLICATE_DIFFERS for reject in refused)
        if left_out:
            taken, position, wait_us = taken.take(accepted), position[accepted], wait_us[accepted]
            names = _EntityNames(*(column[accepted] for column in names))
        n = len(taken)
        features = np.empty((n, len(FEATURES)))
        case_start_us, case_sequence = np.empty(n, np.int64), np.empty(n, np.int64)
        outliers = np.empty(n, np.bool_)
        fields = taken.kernel_fields()
        for number, windows in enumerate(self._cards):
            rows = self._rows(names.partition, number)
            profile = windows.profile(
                names.card[rows], names.merchant[rows], taken.event_time_us[rows], taken.amount_base_minor[rows],
                taken.counts[rows], taken.hour[rows], taken.weekday[rows],
                None if taken.attributes is None else taken.attributes[rows], fields.take(rows),
            )  # fmt: skip
            windows.commit()
            features[rows, : len(CARD_FEATURES)] = profile.features
            case_start_us[rows], case_sequence[rows] = profile.case_start_us, profile.case_sequence
            outliers[rows] = profile.outlier
        self._profile_merchants(taken, outliers, position, names, following, features[:, len(CARD_FEATURES) :])
        return Profiled(
            taken, position, names.partition, names.merchant_partition, wait_us, features, case_start_us, case_sequence,
            duplicates,
            Counter({name: count for name, count in zip(COUNTS, outcomes.tolist(), strict=True) if count}), refused,
        )  # fmt: skip

    def _names(self, taken: Transactions) -> _EntityNames:
        return _EntityNames(
            name_keys(taken.card_id),
            partitions_of(taken.card_id, self._options.partitions),
            name_keys(taken.merchant_id),
            partitions_of(taken.merchant_id, self._options.partitions),
        )

    def _join(
        self, chunk: Chunk, names: _EntityNames
    ) -> tuple[NDArray[np.bool_], NDArray[np.int64], _Following, NDArray[np.int64], list[Reject]]:
        """Return no repeats (n,), wait clocks (n,), labels that travel on, outcomes by `COUNTS`, and refused rows."""
        taken, labels = chunk.transactions, chunk.labels
        digests, content = digest_keys(taken.card_id, taken.transaction_id), content_keys(taken)
        merchants = np.column_stack([names.merchant, names.merchant_partition])
        label_partition = partitions_of(labels.card_id, self._options.partitions)
        accepted, outcomes = np.zeros(len(taken), np.bool_), np.zeros(len(COUNTS), np.int64)
        wait_us, numbers = np.zeros(len(taken), np.int64), np.arange(len(taken))
        followings, rejects = [], []
        for number, state in enumerate(self._joins):
            rows, labels_of = self._rows(names.partition, number), self._rows(label_partition, number)
            joined = state.join(
                self._retention,
                Arrivals(
                    digest=digests[rows],
                    event_time_us=taken.event_time_us[rows],
                    position=chunk.position[rows],
                    content=content[rows],
                    source=taken.row[rows],
                    home=number,
                    feed=names.partition[rows],
                    merchants=merchants[rows],
                    labels=LabelBatch.from_labels(labels.take(labels_of)),
                    label_position=chunk.label_position[labels_of],
                ),
            )
            state.forget(0)
            state.commit()
            accepted[rows] = joined.accepted
            wait_us[numbers[rows][joined.accepted]] = joined.wait_us
            rejects += _contradictions(taken if isinstance(rows, slice) else taken.take(rows), joined.differs)
            outcomes += joined.counts
            found, chunk_labels = joined.following, joined.labels.labels
            labelled = chunk_labels.take(found.label) if len(found.label) else no_labels()
            followings.append(
                _Following(
                    found.position, identities(labelled.card_id, labelled.transaction_id),
                    found.event_time_us, found.merchants,
                    found.known, labelled.known_at_us,
                )
            )  # fmt: skip
            rejects += self._given_up(joined.given_up)
        columns: list[NDArray[Any]] = [np.concatenate(parts) for parts in zip(*followings, strict=True)]
        return accepted, wait_us, _Following(*columns), outcomes, rejects

    def _given_up(self, batch: LabelBatch) -> list[Reject]:
        """Labels that have waited in vain; in no stated order."""
        labels, horizon_us = batch.labels, self._retention.label_us
        names = zip(labels.transaction_id.to_pylist(), labels.card_id.to_pylist(), strict=True)
        texts = [not_joined(transaction_id, card_id, horizon_us) for transaction_id, card_id in names]
        rows = zip(labels.row.tolist(), texts, labels.known_at_us.tolist(), strict=True)
        return [Reject("label", row, NO_TRANSACTION, text, known_at_us) for row, text, known_at_us in rows]

    def _profile_merchants(
        self,
        taken: Transactions,
        outliers: NDArray[np.bool_],
        position: NDArray[np.int64],
        names: _EntityNames,
        following: _Following,
        out: NDArray[np.float64],
    ) -> None:
        """Fill ``out``, shape (n, len(MERCHANT_FEATURES)), with each merchant's partition read in its order."""
        n = len(taken)
        # A label stands behind the record that let it follow, with which it shares its position.
        order = np.argsort(np.concatenate([2 * position, 2 * following.position + 1]), kind="stable")
        log = behind(
            transactions_log(
                names.merchant, taken.event_time_us, taken.amount_base_minor, taken.counts, outliers
            ),
            labels_log(
                following.merchant[:, :2], following.identity, following.event_time_us, _WINDOW_KNOWN[following.known],
                following.known_at_us,
            ),
        )  # fmt: skip
        partition = np.concatenate([names.merchant_partition, following.merchant[:, 2]])
        for number, windows in enumerate(self._merchants):
            rows = order if self._options.partitions == 1 else order[partition[order] == number]
            features = log.take(rows).profile(windows)
            windows.commit()
            transactions = rows < n
            out[rows[transactions]] = features[transactions]

    def _rows(self, partition: NDArray[np.int64], number: int) -> slice | NDArray[np.intp]:
        return slice(None) if self._options.partitions == 1 else np.flatnonzero(partition == number)


def profile_chunks(chunks: Iterator[Chunk], options: CardOptions) -> Generator[tuple[Chunk, Profiled], None, None]:
    """Features of the transactions of each chunk, in the order of the records; nothing is decided."""
    engine = Engine(options)
    try:
        for chunk in chunks:
            yield chunk, engine.profile(chunk)
    finally:
        engine.close()


def _contradictions(taken: Transactions, differs: NDArray[np.int64]) -> list[Reject]:
    """Repeats that say something else than the transaction that was accepted."""
    rows = np.flatnonzero(differs != SAME).tolist()
    return [
        Reject(
            "transaction", int(taken.row[row]), DUPLICATE_DIFFERS,
            contradicts(taken.transaction_id[row].as_py(), taken.card_id[row].as_py()),
        )
        for row in rows
    ]  # fmt: skip
