"""Labels that wait for their transactions: in memory, or over a store."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.engine.partition_state.pending_items import (
    GIVE_UP_AT_MOST,
    MOST_BYTES,
    MOST_OF_ONE,
    PendingItem,
    PendingItems,
)
from pipeline.engine.records.accept import label_columns
from pipeline.engine.records.columns import Labels, digest_bytes, digest_keys, no_labels
from schemas.messages import Label
from schemas.records import Record

_decode_label = msgspec.json.Decoder(Label).decode
_pack_record = msgspec.msgpack.Encoder().encode
_unpack_record = msgspec.msgpack.Decoder(Record).decode


class LabelBatch(NamedTuple):
    """m labels with their transactions' digests, and the records that they are of."""

    labels: Labels
    digest: NDArray[np.int64]
    """Shape (m, 2): `pipeline.engine.records.columns.digest_keys`."""
    records: Sequence[Record] = ()
    """m of them, as they lay in ``labels``; none where nothing is emitted."""

    @classmethod
    def from_labels(cls, labels: Labels, records: Sequence[Record] = ()) -> "LabelBatch":
        """Labels that have just been accepted."""
        return cls(labels, digest_keys(labels.card_id, labels.transaction_id), records) if len(labels) else NO_LABELS

    def take(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> "LabelBatch":
        """The labels of a mask of shape (m,), or of indices."""
        numbers = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        if not len(numbers):
            return NO_LABELS
        records = [self.records[number] for number in numbers.tolist()] if self.records else ()
        return LabelBatch(self.labels.take(numbers), self.digest[numbers], records)

    def __add__(self, other: "LabelBatch") -> "LabelBatch":  # type: ignore[override]
        """The labels of both."""
        if not len(self.labels) or not len(other.labels):
            return self if len(self.labels) else other
        return LabelBatch(
            Labels.concat([self.labels, other.labels]),
            np.concatenate([self.digest, other.digest]),
            (*self.records, *other.records),
        )


NO_LABELS: Final = LabelBatch(no_labels(), np.empty((0, 2), np.int64))


class MemoryPending:
    """Pending labels in memory."""

    def __init__(self) -> None:
        self._batch = self._committed = NO_LABELS

    def awaiting(self, digest: NDArray[np.int64]) -> LabelBatch:
        """Return at least those that wait for ``digest``, shape (n, 2): all."""
        del digest
        return self._batch

    def update(self, batch: LabelBatch, held: int, waits: NDArray[np.bool_]) -> list[tuple[Record, str]]:
        """Keep all labels that ``waits`` marks.

        Args:
            batch: m labels: what `awaiting` returned, and behind them the new ones.
            held: Number of the former; not used in memory.
            waits: Shape (m,), True for those that wait or go on waiting.

        Returns:
            An empty list: in memory there is room for all.
        """
        del held
        self._batch = batch.take(waits)
        return []

    def give_up(self, before_us: int) -> LabelBatch:
        """Remove and return labels that became known before ``before_us``, the earlier arrived first."""
        in_vain = self._batch.labels.known_at_us < before_us
        if not in_vain.any():
            return NO_LABELS
        given_up = self._batch.take(in_vain)
        self._batch = self._batch.take(~in_vain)
        return given_up

    def commit(self) -> None:
        """Commit the batch."""
        self._committed = self._batch

    def rollback(self) -> None:
        """Roll the batch back."""
        self._batch = self._committed


class StorePending(PendingItems):
    """Pending labels in a store, so that a flood of them takes no memory; a label is kept as its record."""

    _held: Sequence[PendingItem] = ()

    def awaiting(self, digest: NDArray[np.int64]) -> LabelBatch:
        """Return those that wait for ``digest``, shape (n, 2); of each, the earlier ones first."""
        if not self.state.count or not len(digest):
            self._held = []
            return NO_LABELS
        asked = list(dict.fromkeys(digest_bytes(digest)))
        self._held = [item for waited in self.awaited(asked) for item in self.items(waited)]
        return _batch(self._held)

    def update(self, batch: LabelBatch, held: int, waits: NDArray[np.bool_]) -> list[tuple[Record, str]]:
        """Keep the labels that ``waits`` marks, and let go of the others.

        Args:
            batch: m labels: what `awaiting` returned, and behind them the new ones, each with its record.
            held: Number of the former.
            waits: Shape (m,), True for those that wait or go on waiting.

        Returns:
            Records of the new labels for which there is no room, each with the reason.
        """
        for item, goes_on in zip(self._held, waits.tolist(), strict=False):
            if not goes_on:
                self.remove(item)
        refused: list[tuple[Record, str]] = []
        for row in (held + np.flatnonzero(waits[held:])).tolist():
            (digest,), payload = digest_bytes(batch.digest[row : row + 1]), _pack_record(batch.records[row])
            if reason := self._no_room(digest, len(payload)):
                refused.append((batch.records[row], reason))
            else:
                self.add(digest, int(batch.labels.known_at_us[row]), payload)
        return refused

    def give_up(self, before_us: int) -> LabelBatch:
        """Remove and return up to `GIVE_UP_AT_MOST` labels that became known before ``before_us``, oldest first."""
        return _batch(self.take_older(before_us, GIVE_UP_AT_MOST))

    def _no_room(self, digest: bytes, size: int) -> str:
        """Return why a label cannot wait; empty if it can."""
        if self.waiting(digest) >= MOST_OF_ONE:
            return f"{MOST_OF_ONE} labels wait for its transaction already"
        if self.state.payload_bytes + size > MOST_BYTES:
            return f"labels of {MOST_BYTES} bytes wait for their transactions in its partition already"
        return ""


def _batch(items: Sequence[PendingItem]) -> LabelBatch:
    """Labels that were accepted before, as columns; they count from the time that was noted then."""
    if not items:
        return NO_LABELS
    records = [_unpack_record(item.payload) for item in items]
    labels = [_decode_label(record.value or b"") for record in records]
    known_at_us = np.array([item.at_us for item in items], np.int64)
    return LabelBatch.from_labels(label_columns(labels, np.arange(len(items)), known_at_us), records)
