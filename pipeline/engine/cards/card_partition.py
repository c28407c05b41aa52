"""The state of one partition of the card agent: windows, accepted transactions, and labels that wait."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

import msgspec

from pipeline.engine.cards.card_batch import process_together
from pipeline.engine.cards.card_join import CardJoin
from pipeline.engine.cards.card_options import CardOptions
from pipeline.engine.cards.driver import CardKernels
from pipeline.engine.cards.joins import Clock
from pipeline.engine.cards.pending import StorePending
from pipeline.engine.cards.transaction_index import IndexState, StoreIndex
from pipeline.engine.partition_state.layout import LAYOUT, decode_values
from pipeline.engine.partition_state.pending_items import PendingItemsState
from pipeline.engine.partition_state.state import LoadedState, StateDump, Store, state_digest
from pipeline.engine.partition_state.wait_clock import WaitClock, WaitState
from pipeline.engine.records.results import Result
from pipeline.features.kernel import CardWindows
from pipeline.features.state_columns import Storage
from schemas.records import Record


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
        """Start empty, or from a dump.

        Args:
            options: Those of every batch that brings none of its own.
            storage: Holds the windows; None: memory.
            store: Holds what the dumped partition's store held; empty without a dump.
            loaded: The dump; None: start empty.

        Raises:
            OtherLayout: The dump is of another release.
        """
        self._options = options
        self._store = store
        windows = CardWindows(storage)
        values = None if loaded is None else decode_values(loaded.values, _DECODER)
        if loaded is not None and values is not None:
            windows.load(values.windows, loaded.columns)
        self._index = StoreIndex(store, values.index if values else None)
        self._pending = StorePending(store, values.pending if values else None)
        clock = Clock() if values is None else Clock(values.stream_time_us, values.first_day, values.waited_us)
        wait = WaitClock(None if values is None else values.wait)
        join = CardJoin(self._index, self._pending, clock, wait)
        self.kernels = CardKernels(join, windows)
        """Kernels, for `process_together`."""

    def process(self, records: Sequence[Record], now: datetime | None, options: CardOptions | None = None) -> Result:
        """Profile one partition's records, as `process_together` does.

        Transactions come before labels, whatever the order of the records.

        Args:
            records: Transactions, rerouted ones and labels, each in offset order.
            now: Stamped as ``ingested_at``; None only updates the state (a replay) and emits nothing.
            options: Replace its own for this batch: a replay hands over those of the live batch. None: its own.

        Returns:
            What is to be written, and counts.
        """
        return process_together([(self.kernels, records)], now, self._options if options is None else options)

    def commit(self) -> None:
        """Commit the batch."""
        self.kernels.windows.commit()
        self._store.commit()
        self.kernels.join.commit()

    def rollback(self) -> None:
        """Roll the batch back."""
        self.kernels.windows.rollback()
        self._store.rollback()
        self.kernels.join.rollback()

    def dump(self, *, full: bool = False) -> StateDump:
        """Copy the committed state."""
        join, windows = self.kernels
        packed, columns = windows.dump(full=full)
        values = _CardValues(LAYOUT, packed, *join.clock, join.wait.state, self._index.state, self._pending.state)
        return StateDump(msgspec.msgpack.encode(values), columns, self._store.freeze())

    def digest(self) -> str:
        """Return the digest of the committed state."""
        join, windows = self.kernels
        states = join.wait.state, self._index.state, self._pending.state
        return state_digest(*join.clock, *states, windows.contents(), self._store)

    def close(self) -> None:
        """Let go of the state."""
        self.kernels.windows.close()
        self._store.close()
