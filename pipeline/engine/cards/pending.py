"""Labels that wait for their transactions: in memory, or over a store."""

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.engine.partition_state.layout import DIGEST_BYTES
from pipeline.engine.partition_state.pending_items import (
    GIVE_UP_AT_MOST,
    MOST_BYTES,
    MOST_OF_ONE,
    PendingItem,
    PendingItems,
)
from pipeline.engine.records.accept import label_columns
from pipeline.engine.records.columns import Labels, digest_keys, no_labels
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


class PendingLabels(Protocol):
    """Labels of one partition that wait."""

    def awaiting(self, digest: NDArray[np.int64]) -> LabelBatch:
        """Return at least those that wait for ``digest``, shape (n, 2); of each, the earlier ones first."""

    def update(self, batch: LabelBatch, held: int, waits: NDArray[np.bool_]) -> list[tuple[Record, str]]:
        """Keep the labels that ``waits``, shape (m,), marks, and let go of the others.

        The first ``held`` of ``batch`` are what `awaiting` returned. Return those for which there is no room, each with
        the reason.
        """

    def give_up(self, before_us: int) -> LabelBatch:
        """Remove and return labels that became known before ``before_us``."""

    def commit(self) -> None:
        """Commit the batch."""

    def rollback(self) -> None:
        """Roll the batch back."""


class MemoryPending:
    """Pending labels in memory."""

    def __init__(self) -> None:
        self._batch = self._committed = NO_LABELS

    def awaiting(self, digest: NDArray[np.int64]) -> LabelBatch:
        """Return all that wait."""
        del digest
        return self._batch

    def update(self, batch: LabelBatch, held: int, waits: NDArray[np.bool_]) -> list[tuple[Record, str]]:
        """Keep all labels that ``waits`` marks."""
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


class StorePending:
    """Pending labels in a store, so that a flood of them takes no memory; a label is kept as its record."""

    def __init__(self, items: PendingItems) -> None:
        self._items = items
        self._held: list[PendingItem] = []

    def awaiting(self, digest: NDArray[np.int64]) -> LabelBatch:
        """Return those that wait for ``digest``."""
        if not self._items.state.count or not len(digest):
            self._held = []
            return NO_LABELS
        packed = digest.astype(">i8").tobytes()
        asked = dict.fromkeys(packed[at : at + DIGEST_BYTES] for at in range(0, len(packed), DIGEST_BYTES))
        self._held = [item for digest in self._items.awaited(list(asked)) for item in self._items.items(digest)]
        return _batch(self._held)

    def update(self, batch: LabelBatch, held: int, waits: NDArray[np.bool_]) -> list[tuple[Record, str]]:
        """Keep the labels that ``waits`` marks, as far as there is room for those that have not waited before."""
        for item, goes_on in zip(self._held, waits.tolist(), strict=False):
            if not goes_on:
                self._items.remove(item)
        refused: list[tuple[Record, str]] = []
        for row in (held + np.flatnonzero(waits[held:])).tolist():
            digest, payload = batch.digest[row].astype(">i8").tobytes(), _pack_record(batch.records[row])
            if reason := self._no_room(digest, len(payload)):
                refused.append((batch.records[row], reason))
            else:
                self._items.add(digest, int(batch.labels.known_at_us[row]), payload)
        return refused

    def give_up(self, before_us: int) -> LabelBatch:
        """Remove and return up to `GIVE_UP_AT_MOST` labels that became known before ``before_us``, oldest first."""
        return _batch(self._items.take_older(before_us, GIVE_UP_AT_MOST))

    def _no_room(self, digest: bytes, size: int) -> str:
        """Return why a label cannot wait; empty if it can."""
        if self._items.waiting(digest) >= MOST_OF_ONE:
            return f"{MOST_OF_ONE} labels wait for its transaction already"
        if self._items.state.payload_bytes + size > MOST_BYTES:
            return f"labels of {MOST_BYTES} bytes wait for their transactions in its partition already"
        return ""

    def commit(self) -> None:
        """Commit the batch (the store is committed by its owner)."""
        self._items.commit()

    def rollback(self) -> None:
        """Roll the batch back."""
        self._items.rollback()


def _batch(items: Sequence[PendingItem]) -> LabelBatch:
    """Labels that were accepted before, as columns; they count from the time that was noted then."""
    if not items:
        return NO_LABELS
    records = [_unpack_record(item.payload) for item in items]
    labels = [_decode_label(record.value or b"") for record in records]
    known_at_us = np.array([item.at_us for item in items], np.int64)
    return LabelBatch.from_labels(label_columns(labels, np.arange(len(items)), known_at_us), records)
