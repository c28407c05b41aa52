"""The score agent's state: merchant windows and known fraud, of which a partition's features are completed."""

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.decision.rule_caps import PartitionCaps
from pipeline.engine.encoding.blocks import TRANSACTION, Input, KernelMismatch, parse_block
from pipeline.engine.partition_state.layout import LAYOUT, decode_values
from pipeline.engine.partition_state.state import LoadedState, StateDump, state_digest
from pipeline.engine.records.results import Result
from pipeline.engine.scores.deduplication import ReadInput, ReadInputs
from pipeline.engine.scores.profiled import ProfiledRows, read_rows
from pipeline.features.catalogue import CARD_FEATURES, KERNEL_VERSION
from pipeline.features.kernel import MerchantWindows
from pipeline.features.state_columns import Storage
from schemas.records import Record


class _ScoreValues(msgspec.Struct):
    layout: int
    windows: bytes
    inputs: list[ReadInput]


_DECODER: Final = msgspec.msgpack.Decoder(_ScoreValues)


class ScorePartition:
    """State of one partition of ``profiled``: a function of its rows in log order, and of nothing else."""

    def __init__(self, storage: Storage | None = None, loaded: LoadedState | None = None) -> None:
        """Start empty, or from a dump; ``storage`` is where the windows are kept."""
        self._windows = MerchantWindows(storage)
        self._inputs = ReadInputs()
        self.caps = PartitionCaps()
        """Counts what is decided, which no replay does: its counters are committed with offsets, not in a dump."""
        if loaded is not None:
            values = decode_values(loaded.values, _DECODER)
            self._windows.load(values.windows, loaded.columns)
            self._inputs = ReadInputs(values.inputs)

    def commit(self) -> None:
        """The batch is committed."""
        self._windows.commit()
        self._inputs.commit()
        self.caps.commit()

    def rollback(self) -> None:
        """The batch is not committed: take it back."""
        self._windows.rollback()
        self._inputs.rollback()
        self.caps.rollback()

    def dump(self, *, full: bool = False) -> StateDump:
        """Copy the committed state."""
        windows, columns = self._windows.dump(full=full)
        return StateDump(msgspec.msgpack.encode(_ScoreValues(LAYOUT, windows, self._inputs.dump())), columns)

    def digest(self) -> str:
        """Return the digest of the committed state."""
        return state_digest(self._windows.contents(), self._inputs.dump())

    def close(self) -> None:
        """Let go of the state."""
        self._windows.close()

    def replay(self, records: Sequence[Record]) -> None:
        """Let records enter the state without deciding anything."""
        rows = read_rows(records)
        entering = self._entering(rows, range(len(records)), Result())
        rows.log.take(entering).profile(self._windows)

    def profile(self, rows: ProfiledRows, numbers: range, result: Result) -> NDArray[np.intp]:
        """Return the transactions among the rows of some records, and complete their features.

        All enter the state. A replay reads over features of another kernel, which it does not use.

        Args:
            rows: Rows of all records of a read; their features behind those of cards are filled.
            numbers: Which of its records; those before them must have entered the state.
            result: Gets dead letters of refused records, and counts of labels and repeats.

        Returns:
            Numbers of rows, ascending, without repeats.

        Raises:
            KernelMismatch: A block is of another kernel.
        """
        entering = self._entering(rows, numbers, result)
        kinds = rows.kinds[entering]
        if not len(kinds):
            return np.empty(0, np.intp)
        decided = np.arange(entering.start, entering.stop) if isinstance(entering, slice) else entering
        if labels := int(np.count_nonzero(kinds)):
            decided = decided[kinds == TRANSACTION]
        # First, since another kernel may have another number of features too.
        self._check_kernel(rows, decided)
        rows.features[entering, len(CARD_FEATURES) :] = rows.log.take(entering).profile(self._windows)
        result.counts["label", "profiled"] += labels
        return decided

    def _entering(self, rows: ProfiledRows, numbers: range, result: Result) -> slice | NDArray[np.intp]:
        """Return the rows of the records ``numbers`` but for repeats; ``result`` gets what was refused."""
        for number, error in rows.refused.items():
            if number in numbers:
                result.unreadable(rows.records[number], "score", error)
        within = rows.rows_of(numbers)
        duplicates = self._inputs.duplicates(rows, within)
        if not duplicates:
            return slice(within.start, within.stop)
        result.counts["duplicate", ""] += len(duplicates)
        return np.delete(np.arange(within.start, within.stop), np.array(duplicates, np.intp) - within.start)

    def unseen(self, inputs: Iterable[Input]) -> frozenset[Input]:
        """Return the records of the card agent's inputs that lie behind all that blocks have shown so far."""
        return self._inputs.unseen(inputs)

    def _check_kernel(self, rows: ProfiledRows, decided: NDArray[np.intp]) -> None:
        numbers = np.unique(rows.record[decided]).tolist() if rows.kernels else []
        for number in numbers:
            if (kernel := rows.kernels.get(number)) is not None:
                record = rows.records[number]
                block = parse_block(record.value)
                raise KernelMismatch(
                    f"{record.topic} partition {record.partition} offset {record.offset} was profiled by kernel "
                    f"{kernel}, this worker has {KERNEL_VERSION} (rows of {block.sources.text(block.names)})"
                )
