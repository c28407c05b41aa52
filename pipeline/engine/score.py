"""The score agent's state: merchant windows and known fraud, of which a partition's features are completed."""

from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.engine.blocks import TRANSACTION
from pipeline.engine.deduplication import ReadInput, ReadInputs
from pipeline.engine.layout import LAYOUT, OtherLayout, decode_values
from pipeline.engine.profiled import ProfiledRows, read_rows
from pipeline.engine.results import Result
from pipeline.engine.state import LoadedState, StateDump, state_digest
from pipeline.features.catalogue import CARD_FEATURES, KERNEL_VERSION
from pipeline.features.columns import Storage
from pipeline.features.kernel import MerchantWindows
from schemas.records import Record


class KernelMismatch(RuntimeError):
    """A block on ``profiled`` holds features of another kernel version than this worker's."""


class KernelChanged(KernelMismatch):
    """Several such blocks, and none of this worker's kernel behind them: no single record is to blame."""


class _ScoreValues(msgspec.Struct):
    layout: int
    windows: bytes
    inputs: list[ReadInput]


_DECODER: Final = msgspec.msgpack.Decoder(_ScoreValues)


class ScorePartition:
    """State of one partition of ``profiled``: a function of its rows in log order, and of nothing else."""

    def __init__(
        self,
        storage: Storage | None = None,
        loaded: LoadedState | None = None,
        *,
        accept_other_kernel: bool = False,
    ) -> None:
        """Start empty, or from a dump.

        Args:
            storage: Where the windows are kept.
            loaded: The dump.
            accept_other_kernel: Whether records of another kernel only ever fail one by one.

        Raises:
            OtherLayout: another release has made the dump.
        """
        self._accept_other_kernel = accept_other_kernel
        self._newest_own = -1
        self._others: set[int] = set()
        """Offsets of blocks of another kernel that no block of this one has followed so far."""
        self._windows = MerchantWindows(storage)
        self._inputs = ReadInputs()
        if loaded is not None:
            values = decode_values(loaded.values, _DECODER)
            if values.layout != LAYOUT:
                raise OtherLayout(f"the saved state has layout {values.layout}, not {LAYOUT}; replay it from the log")
            self._windows.load(values.windows, loaded.columns)
            self._inputs = ReadInputs(values.inputs)

    def commit(self) -> None:
        """The batch is committed."""
        self._windows.commit()
        self._inputs.commit()

    def rollback(self) -> None:
        """The batch is not committed: take it back."""
        self._windows.rollback()
        self._inputs.rollback()

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
        """Return the transactions among the rows of some records, which all enter the state; complete their features.

        A replay reads over features of another kernel, which it does not use.

        Args:
            rows: Rows of this partition, and of others.
            numbers: Numbers of this partition's records.
            result: Counts them.

        Raises:
            KernelMismatch: A block is of another kernel.
            KernelChanged: So are those behind it.
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

    def _check_kernel(self, rows: ProfiledRows, decided: NDArray[np.intp]) -> None:
        """Raise for a block of another kernel; a halved batch is checked by what was seen of the whole one."""
        numbers = np.unique(rows.record[decided]).tolist()
        others = [number for number in numbers if number in rows.kernels]
        own = [number for number in numbers if number not in rows.kernels]
        if own:
            self._newest_own = max(self._newest_own, rows.records[own[-1]].offset)
        if not others and not self._others:
            return
        seen = self._others.union(rows.records[number].offset for number in others)
        self._others = {offset for offset in seen if offset > self._newest_own}
        if not others:
            return
        record = rows.records[others[0]]
        what = (
            f"{record.topic} partition {record.partition} offset {record.offset} was profiled by kernel "
            f"{rows.kernels[others[0]]}, this worker has {KERNEL_VERSION}"
        )
        if record.offset in self._others and len(self._others) > 1 and not self._accept_other_kernel:
            raise KernelChanged(
                f"{what}, and more records of another kernel follow: run card and score agents of one version, and let "
                "the score agent finish the log before an upgrade"
            )
        raise KernelMismatch(what)
