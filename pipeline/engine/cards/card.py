"""The card agent's kernel: validates transactions, profiles them by card, and lets labels follow them."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final, NamedTuple, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.engine.cards.card_batch import CardKeys, process_together
from pipeline.engine.cards.card_join import Arrivals, CardJoin, Joined
from pipeline.engine.cards.joins import Clock, Retention
from pipeline.engine.cards.pending import StorePending
from pipeline.engine.cards.transaction_index import IndexState, StoreIndex
from pipeline.engine.partition_state.layout import LAYOUT, OtherLayout, decode_values, forgotten_with
from pipeline.engine.partition_state.pending_items import PendingItems, PendingItemsState
from pipeline.engine.partition_state.state import LoadedState, StateDump, Store, state_digest
from pipeline.engine.partition_state.wait_clock import WaitClock, WaitState
from pipeline.engine.records.columns import Transactions
from pipeline.engine.records.results import Result
from pipeline.features.columns import Storage
from pipeline.features.kernel import CardProfile, CardWindows
from schemas.messages import CardConfig
from schemas.money import RateTable
from schemas.records import Record

_encode = msgspec.json.Encoder(decimal_format="number").encode


class CardOptions(NamedTuple):
    """The options of the card kernel."""

    rates: RateTable
    future_tolerance_us: int
    dedup_horizon_us: int
    label_horizon_us: int
    partitions: int
    """Number of partitions of ``transactions``, and so of ``accepted-labels`` and ``rerouted``."""
    topic_prefix: str = ""
    merchant_partitions: int = 1
    """Number of partitions of ``profiled``."""
    dropped_fields: frozenset[str] = frozenset()
    """Fields that the producers' own bytes lose on their way to ``profiled``."""

    @property
    def config(self) -> CardConfig:
        """Return the processing config: the options that decide how a record is processed, live and in a replay."""
        return CardConfig(
            rates_version=self.rates.version,
            rates_digest=self.rates.digest,
            future_tolerance_us=self.future_tolerance_us,
            dedup_horizon_us=self.dedup_horizon_us,
            label_horizon_us=self.label_horizon_us,
        )

    def under(self, config: CardConfig, rates: RateTable) -> Self:
        """Return the options under another processing config, whose table is ``rates``."""
        return self._replace(
            rates=rates,
            future_tolerance_us=config.future_tolerance_us,
            dedup_horizon_us=config.dedup_horizon_us,
            label_horizon_us=config.label_horizon_us,
        )


class _CardValues(msgspec.Struct):
    layout: int
    windows: bytes
    stream_time_us: int
    first_day: int
    waited_us: int
    wait: WaitState
    index: IndexState
    pending: PendingItemsState


_DECODER: Final = msgspec.msgpack.Decoder(_CardValues)


class CardPartition:
    """State of one partition of ``transactions``, and of the same of ``accepted-labels`` and ``rerouted``."""

    def __init__(
        self, options: CardOptions, storage: Storage | None, store: Store, loaded: LoadedState | None = None
    ) -> None:
        """Start empty, or from a dump; then ``store`` holds what the dumped partition's store held.

        Raises `OtherLayout` where another release has made the dump.
        """
        self._options = options
        self._store = store
        self._windows = CardWindows(storage)
        values = None if loaded is None else decode_values(loaded.values, _DECODER)
        if values is not None and values.layout != LAYOUT:
            raise OtherLayout(f"the saved state has layout {values.layout}, not {LAYOUT}; replay it from the log")
        if loaded is not None and values is not None:
            self._windows.load(values.windows, loaded.columns)
        self._index = StoreIndex(store, values.index if values else None)
        self._pending = PendingItems(store, values.pending if values else None)
        clock = Clock() if values is None else Clock(values.stream_time_us, values.first_day, values.waited_us)
        wait = WaitClock(None if values is None else values.wait)
        self._join = CardJoin(self._index, StorePending(self._pending), clock, wait)

    def process(self, records: Sequence[Record], now: datetime | None, options: CardOptions | None = None) -> Result:
        """Profile one partition's records: transactions, rerouted ones and labels, each in offset order.

        Transactions come before labels, whatever the order of the records.

        Args:
            records: The batch.
            now: Stamped as ``ingested_at``; None only updates the state (a replay) and emits nothing.
            options: Take the place of the kernel's own for this batch: a replay hands over those of the live batch.

        Returns:
            What is to be written, and counts.
        """
        return process_together([(self, records)], now, self._options if options is None else options)

    def join(self, given: Arrivals[list[bytes]], options: CardOptions, records: int) -> Joined[list[bytes]]:
        """Let transactions and labels enter the state.

        Args:
            given: Transactions and labels.
            options: Those of the batch.
            records: Records of the batch, refused ones included: forgetting keeps step with them.
        """
        joined = self._join.join(Retention(options.dedup_horizon_us, options.label_horizon_us), given)
        self._join.forget(forgotten_with(records))
        return joined

    def profile(self, keys: CardKeys, rows: NDArray[np.intp], transactions: Transactions) -> CardProfile:
        """Let accepted transactions enter the windows.

        Args:
            keys: Those of ``transactions``.
            rows: Shape (m,), the transactions among ``transactions``.
            transactions: Transactions of all partitions.
        """
        return self._windows.profile(
            keys.card[rows],
            keys.merchant[rows],
            transactions.event_time_us[rows],
            transactions.amount_base_minor[rows],
            transactions.counts[rows],
            transactions.hour[rows],
            transactions.weekday[rows],
            None if transactions.attributes is None else transactions.attributes[rows],
            transactions.kernel_fields().take(rows),
        )

    def commit(self) -> None:
        """Commit the batch."""
        self._windows.commit()
        self._store.commit()
        self._join.commit()

    def rollback(self) -> None:
        """Roll the batch back."""
        self._windows.rollback()
        self._store.rollback()
        self._join.rollback()

    def dump(self, *, full: bool = False) -> StateDump:
        """Copy the committed state."""
        windows, columns = self._windows.dump(full=full)
        states = self._join.wait.state, self._index.state, self._pending.state
        values = _CardValues(LAYOUT, windows, *self._join.clock, *states)
        return StateDump(msgspec.msgpack.encode(values), columns, self._store.freeze())

    def digest(self) -> str:
        """Return the digest of the committed state."""
        states = self._join.wait.state, self._index.state, self._pending.state
        return state_digest(*self._join.clock, *states, self._windows.contents(), self._store)

    def close(self) -> None:
        """Let go of the state."""
        self._windows.close()
        self._store.close()
