"""The kernels of all partitions over columns: from a chunk of records in their order to decisions.

What is decided is what the live kernels decide when every record is carried through the card and the score agent before
the next one is read; ``docs/decisions/0025-columnar-backtests.md`` says what follows for other ways to cut batches.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.backtest.input.order import Chunk
from pipeline.engine.cards.card_join import CardJoin
from pipeline.engine.cards.card_options import CardOptions
from pipeline.engine.cards.driver import CardKernels, CardOutcome, CardPart, CardRows, process_cards
from pipeline.engine.cards.pending import LabelBatch, MemoryPending
from pipeline.engine.cards.transaction_index import MemoryIndex
from pipeline.engine.encoding.blocks import KNOWN_CODES, LABEL, TRANSACTION
from pipeline.engine.records.columns import Reject, Transactions, name_keys
from pipeline.engine.records.partitioner import partitions_of
from pipeline.engine.scores.active_models import ActiveModels
from pipeline.engine.scores.decisions import Decisions, decided
from pipeline.engine.scores.profiled import MerchantLog
from pipeline.features.catalogue import FEATURES, INPUT_COLUMNS
from pipeline.features.kernel import CardWindows, MerchantWindows


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
        self._cards = [CardKernels(CardJoin(MemoryIndex(), MemoryPending()), CardWindows()) for _ in numbers]
        self._merchants = [MerchantWindows() for _ in numbers]

    def close(self) -> None:
        """Let go of the state."""
        for windows in (*(kernels.windows for kernels in self._cards), *self._merchants):
            windows.close()

    def decide(self, models: ActiveModels, chunk: Chunk, rejects: Sequence[Reject] = ()) -> Decisions:
        """Let records enter the state, and decide about their transactions.

        Args:
            models: Models and policy that decide about all of the chunk.
            chunk: Records that follow those of all calls before.
            rejects: Input rows that were refused since the chunk before; the decisions pass them on.

        Returns:
            Decisions about the transactions that are no repeats, in the order of the chunk.
        """
        found = self.profile(chunk)
        return Decisions(
            transactions=found.transactions,
            position=found.position,
            partition=found.partition,
            merchant_partition=found.merchant_partition,
            wait_us=found.wait_us,
            features=found.features,
            **decided(models, found.features, found.transactions)._asdict(),
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
        taken, partitions = chunk.transactions, self._options.partitions
        partition, merchants = partitions_of(taken.card_id, partitions), name_keys(taken.merchant_id)
        merchant_partition = partitions_of(taken.merchant_id, partitions)
        rows = CardRows(
            taken, merchants, np.column_stack([merchants, merchant_partition]),
            chunk.position, taken.row, partition,
        )  # fmt: skip
        parts = self._parts(chunk, partition)
        outcome = process_cards(rows, parts, self._options.retention, len(FEATURES))
        for kernels in self._cards:
            kernels.join.commit()
            kernels.windows.commit()
        if len(outcome.position) < len(taken):
            partition, merchant_partition = partition[outcome.accepted], merchant_partition[outcome.accepted]
        self._profile_merchants(outcome, merchant_partition)
        refused = [reject for reject, _ in (*outcome.contradictions, *outcome.given_up)]
        return Profiled(
            outcome.transactions, outcome.position, partition, merchant_partition, outcome.wait_us,
            outcome.profile.features, outcome.profile.case_start_us, outcome.profile.case_sequence, outcome.duplicates,
            outcome.label_outcomes, refused,
        )  # fmt: skip

    def _parts(self, chunk: Chunk, partition: NDArray[np.int64]) -> Iterator[CardPart]:
        label_partition = partitions_of(chunk.labels.card_id, self._options.partitions)
        for number, kernels in enumerate(self._cards):
            rows, labels = self._rows(partition, number), self._rows(label_partition, number)
            batch = LabelBatch.from_labels(chunk.labels.take(labels))
            # Its index forgets when it needs room, whatever a batch holds.
            yield CardPart(kernels, number, rows, batch, chunk.label_position[labels], 0)

    def _profile_merchants(self, outcome: CardOutcome, merchant_partition: NDArray[np.int64]) -> None:
        """Complete the features with each merchant's partition read in its order."""
        taken, following = outcome.transactions, outcome.following
        labels, n, k = following.labels.labels, len(taken), len(following.position)
        no = np.zeros(k, np.bool_)
        log = MerchantLog(
            np.repeat(np.array([TRANSACTION, LABEL], np.uint8), [n, k]),
            np.concatenate([outcome.merchants, following.merchants[:, :2]]),
            np.concatenate([np.zeros(n, np.uint64), labels.identities()]),
            np.concatenate([taken.event_time_us, following.event_time_us]),
            np.concatenate([taken.amount_base_minor, np.zeros(k, np.int64)]),
            np.concatenate([taken.counts, no]),
            np.concatenate([outcome.profile.outlier, no]),
            np.concatenate([np.zeros(n, np.int8), KNOWN_CODES[following.known].astype(np.int8)]),
            np.concatenate([np.zeros(n, np.int64), labels.known_at_us]),
            np.concatenate([outcome.profile.features[:, INPUT_COLUMNS], np.full((k, len(INPUT_COLUMNS)), np.nan)]),
        )
        order = outcome.log_order()
        partition = np.concatenate([merchant_partition, following.merchants[:, 2]])
        out_rows = np.concatenate([np.arange(n), np.full(k, -1)])
        for number, windows in enumerate(self._merchants):
            rows = order if self._options.partitions == 1 else order[partition[order] == number]
            log.take(rows).profile(windows, outcome.profile.features, out_rows[rows])
            windows.commit()

    def _rows(self, partition: NDArray[np.int64], number: int) -> slice | NDArray[np.intp]:
        return slice(None) if self._options.partitions == 1 else np.flatnonzero(partition == number)
