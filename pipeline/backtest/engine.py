"""The kernels of all partitions over columns: from a chunk of records in their order to decisions.

What is decided is what the live kernels decide when every record is carried through the card and the score agent before
the next one is read; ``docs/decisions/0025-columnar-backtests.md`` says what follows for other ways to cut batches.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.backtest.joins import COUNTS, CardIndex, Following, Records
from pipeline.backtest.order import Chunk
from pipeline.engine.card import CardOptions
from pipeline.engine.columns import Reject, Transactions, digest_keys, name_keys
from pipeline.engine.decisions import Decisions, decided
from pipeline.engine.merchants import behind, labels_log, transactions_log
from pipeline.engine.models import ActiveModels
from pipeline.engine.placement import partitions_of
from pipeline.engine.profiled import KNOWN_CODES, KNOWN_NONE
from pipeline.features.catalogue import CARD_FEATURES, FEATURES
from pipeline.features.kernel import CardWindows, MerchantWindows
from pipeline.learning.labels import KNOWN

_WINDOW_KNOWN: Final = np.array([KNOWN_CODES.get(name, KNOWN_NONE) for name in KNOWN], np.int8)
"""What is known, as the merchants' windows number it, by number of `KNOWN`."""


class _Names(NamedTuple):
    """Of n transactions, by what the windows and the partitions go."""

    card: NDArray[np.int64]
    """Shape (n, 2)."""
    partition: NDArray[np.int64]
    merchant: NDArray[np.int64]
    """Shape (n, 2)."""
    merchant_partition: NDArray[np.int64]


class Profiled(NamedTuple):
    """A chunk's transactions that are no repeats, n of them, with what the windows know of them."""

    transactions: Transactions
    position: NDArray[np.int64]
    """Shape (n,): where each stands among all records of the chunk."""
    partition: NDArray[np.int64]
    """Of the card."""
    features: NDArray[np.float64]
    """Shape (n, len(FEATURES)), NaN for no value."""
    case_start_us: NDArray[np.int64]
    case_sequence: NDArray[np.int64]
    duplicates: int
    label_outcomes: Counter[str]
    in_vain: list[Reject]
    """Labels that have waited in vain."""


class Engine:
    """State of a whole pipeline of ``options.partitions`` partitions: windows, index, labels that wait."""

    def __init__(self, options: CardOptions) -> None:
        self._options = options
        numbers = range(options.partitions)
        self._indexes = [CardIndex(options.dedup_horizon_us, options.label_horizon_us) for _ in numbers]
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
            features=found.features,
            **decided(models, found.features, found.transactions.identities)._asdict(),
            case_start_us=found.case_start_us,
            case_sequence=found.case_sequence,
            models=models,
            base_currency=self._options.rates.base,
            rates_version=self._options.rates.version,
            duplicates=found.duplicates,
            label_outcomes=found.label_outcomes,
            rejects=(*rejects, *found.in_vain),
        )

    def profile(self, chunk: Chunk) -> Profiled:
        """Let the records of ``chunk`` enter the state; nothing is decided."""
        before = self._label_counts()
        taken, position, names = chunk.transactions, chunk.position, self._names(chunk.transactions)
        accepted, following, in_vain = self._join(chunk, names)
        duplicates = len(taken) - int(np.count_nonzero(accepted))
        if duplicates:
            taken, position = taken.take(accepted), position[accepted]
            names = _Names(*(column[accepted] for column in names))
        n = len(taken)
        features = np.empty((n, len(FEATURES)))
        case_start_us, case_sequence = np.empty(n, np.int64), np.empty(n, np.int64)
        for number, windows in enumerate(self._cards):
            of = self._rows(names.partition, number)
            profile = windows.profile_keys(
                names.card[of], names.merchant[of], taken.event_time_us[of], taken.amount_base_minor[of],
                taken.counts[of], taken.hour[of], taken.weekday[of],
            )  # fmt: skip
            windows.settle()
            features[of, : len(CARD_FEATURES)] = profile.features
            case_start_us[of], case_sequence[of] = profile.case_start_us, profile.case_sequence
        self._profile_merchants(taken, position, names, following, features[:, len(CARD_FEATURES) :])
        return Profiled(
            taken, position, names.partition, features, case_start_us, case_sequence, duplicates,
            self._label_counts() - before, in_vain,
        )  # fmt: skip

    def _names(self, taken: Transactions) -> _Names:
        return _Names(
            name_keys(taken.card_id),
            self.partitions(taken.card_id),
            name_keys(taken.merchant_id),
            self.partitions(taken.merchant_id),
        )

    def _join(self, chunk: Chunk, names: _Names) -> tuple[NDArray[np.bool_], Following, list[Reject]]:
        """What is no repeat, shape (n,); the labels that travel on; labels given up."""
        taken, labels = chunk.transactions, chunk.labels
        digests = digest_keys(taken.card_id, taken.transaction_id)
        label_partition = self.partitions(labels.card_id)
        accepted = np.zeros(len(taken), np.bool_)
        followings, rejects = [], []
        for number, index in enumerate(self._indexes):
            of, labels_of = self._rows(names.partition, number), self._rows(label_partition, number)
            joined = index.join(
                Records(
                    digest=digests[of],
                    event_time_us=taken.event_time_us[of],
                    merchant=names.merchant[of],
                    merchant_partition=names.merchant_partition[of],
                    position=chunk.position[of],
                    labels=labels.take(labels_of),
                    label_position=chunk.label_position[labels_of],
                )
            )
            accepted[of] = joined.accepted
            followings.append(joined.following)
            rejects += joined.rejects
        return accepted, together(followings), rejects

    def _profile_merchants(
        self,
        taken: Transactions,
        position: NDArray[np.int64],
        names: _Names,
        following: Following,
        out: NDArray[np.float64],
    ) -> None:
        """Fill ``out``, shape (n, len(MERCHANT_FEATURES)), with each merchant's partition read in its order."""
        n = len(taken)
        # A label stands behind the record that let it follow, with which it shares its position.
        order = np.argsort(np.concatenate([2 * position, 2 * following.position + 1]), kind="stable")
        log = behind(
            transactions_log(names.merchant, taken.event_time_us, taken.amount_base_minor, taken.counts),
            labels_log(
                following.merchant, following.identity, following.event_time_us, _WINDOW_KNOWN[following.known],
                following.known_at_us,
            ),
        )  # fmt: skip
        place = np.concatenate([names.merchant_partition, following.merchant_partition])
        for number, windows in enumerate(self._merchants):
            rows = order if self._options.partitions == 1 else order[place[order] == number]
            features = log.take(rows).profile(windows)
            windows.settle()
            transactions = rows < n
            out[rows[transactions]] = features[transactions]

    def _label_counts(self) -> Counter[str]:
        totals = np.sum([index.counts for index in self._indexes], axis=0).tolist()
        return Counter(dict(zip(COUNTS, totals, strict=True)))

    def partitions(self, names: pa.Array) -> NDArray[np.int64]:
        """To which partition each name belongs; shape (n,)."""
        if self._options.partitions == 1:
            return np.zeros(len(names), np.int64)
        encoded = names.dictionary_encode()
        of = partitions_of(encoded.dictionary.to_pylist(), self._options.partitions)
        rows: NDArray[np.int32] = encoded.indices.to_numpy()
        return np.array(of, np.int64)[rows]

    def _rows(self, partition: NDArray[np.int64], number: int) -> slice | NDArray[np.intp]:
        return slice(None) if self._options.partitions == 1 else np.flatnonzero(partition == number)


def together(parts: Sequence[Following]) -> Following:
    """The labels of all partitions; those of one record stay as they are."""
    columns: list[NDArray[Any]] = [np.concatenate(of) for of in zip(*parts, strict=True)]
    return Following(*columns)
