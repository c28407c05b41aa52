"""The score agent's state: merchant windows and known fraud, of which a partition's features are completed."""

from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.engine.layout import LAYOUT, OtherLayout, decode_values
from pipeline.engine.repeats import ReadInput, ReadInputs
from pipeline.engine.results import ForeignRecord, Result
from pipeline.engine.state import LoadedState, StateDump
from pipeline.features.catalogue import CARD_FEATURES, FEATURES, KERNEL_VERSION
from pipeline.features.columns import Storage
from pipeline.features.identity import transaction_hash
from pipeline.features.kernel import MerchantWindows
from schemas.codec import EARLIEST_US, LATEST_US, MAX_AMOUNT_BASE_MINOR
from schemas.errors import UNREADABLE
from schemas.messages import ProfiledLabel, ProfiledTransaction
from schemas.records import Record

_decode = msgspec.json.Decoder(ProfiledTransaction | ProfiledLabel).decode
KNOWN_CODES = {"fraud": 1, "legitimate": 0}
KNOWN_NONE = 2
_CARD_FEATURES_BYTES: Final = 8 * len(CARD_FEATURES)
_LARGEST_TIME_US: Final = 2**62
"""So that no sum of two times leaves 64 bits."""


class KernelMismatch(RuntimeError):
    """A record of ``profiled`` holds features of another kernel version than this worker's."""


class KernelChanged(KernelMismatch):
    """Several such records, and none of this worker's kernel behind them: no single record is to blame."""


class _Values(msgspec.Struct):
    layout: int
    windows: bytes
    inputs: list[ReadInput]


_DECODER: Final = msgspec.msgpack.Decoder(_Values)


class ScorePartition:
    """State of one partition of ``profiled``: a function of its records in offset order, and of nothing else."""

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
        """Offsets of records of another kernel that no record of this one has followed so far."""
        self._windows = MerchantWindows(storage)
        self._inputs = ReadInputs()
        if loaded is not None:
            values = decode_values(loaded.values, _DECODER)
            if values.layout != LAYOUT:
                raise OtherLayout(f"the saved state has layout {values.layout}, not {LAYOUT}; fold it from the log")
            self._windows.load(values.windows, loaded.columns)
            self._inputs = ReadInputs(values.inputs)

    def settle(self) -> None:
        """The batch is committed."""
        self._windows.settle()
        self._inputs.settle()

    def undo(self) -> None:
        """The batch is not committed: take it back."""
        self._windows.undo()
        self._inputs.undo()

    def dump(self, *, full: bool = False) -> StateDump:
        """Copy the settled state."""
        windows, columns = self._windows.dump(full=full)
        return StateDump(msgspec.msgpack.encode(_Values(LAYOUT, windows, self._inputs.dump())), columns)

    def close(self) -> None:
        """Let go of the state."""
        self._windows.close()

    def fold(self, records: Sequence[Record]) -> None:
        """Let records enter the state without deciding anything."""
        messages = self._read(records, Result())
        self._profile([message for _, message in messages])

    def profile(
        self, records: Sequence[Record], result: Result
    ) -> tuple[list[tuple[Record, ProfiledTransaction]], NDArray[np.float64]]:
        """The transactions among ``records`` with what models see of them, shape (n, len(FEATURES)).

        All of them enter the state; ``result`` counts them. A replay reads over features of another kernel, which it
        does not use.

        Raises:
            KernelMismatch: a record is of another kernel.
            KernelChanged: so are those behind it.
        """
        read = self._read(records, result)
        if not read:
            return [], np.empty((0, len(FEATURES)))
        decided = [(record, message) for record, message in read if isinstance(message, ProfiledTransaction)]
        # First, since another kernel may have another number of features too.
        self._check_kernel(decided)
        merchant = self._profile([message for _, message in read])
        rows = [i for i, (_, message) in enumerate(read) if isinstance(message, ProfiledTransaction)]
        result.counts["label", "profiled"] += len(read) - len(rows)
        return decided, _features(decided, merchant[rows])

    def _check_kernel(self, decided: Sequence[tuple[Record, ProfiledTransaction]]) -> None:
        """Raise for a record of another kernel; a halved batch is judged by what was seen of the whole one."""
        others = [(record, message) for record, message in decided if message.kernel != KERNEL_VERSION]
        own = (record.offset for record, message in reversed(decided) if message.kernel == KERNEL_VERSION)
        self._newest_own = max(self._newest_own, next(own, -1))
        seen = self._others.union(record.offset for record, _ in others)
        self._others = {offset for offset in seen if offset > self._newest_own}
        if not others:
            return
        record, message = others[0]
        what = (
            f"{record.topic} partition {record.partition} offset {record.offset} was profiled by kernel "
            f"{message.kernel}, this worker has {KERNEL_VERSION}"
        )
        if record.offset in self._others and len(self._others) > 1 and not self._accept_other_kernel:
            raise KernelChanged(
                f"{what}, and more records of another kernel follow: run card and score agents of one version, and let "
                "the score agent finish the log before an upgrade"
            )
        raise KernelMismatch(what)

    def _read(
        self, records: Sequence[Record], result: Result
    ) -> list[tuple[Record, ProfiledTransaction | ProfiledLabel]]:
        read = []
        for record in records:
            try:
                message = read_profiled(record.value)
            except (*UNREADABLE, ValueError) as error:
                result.unreadable(record, "score", error)
                continue
            if isinstance(message, ProfiledTransaction) and self._inputs.is_repeat(message):
                result.counts["duplicate", ""] += 1
                continue
            read.append((record, message))
        return read

    def _profile(self, messages: Sequence[ProfiledTransaction | ProfiledLabel]) -> NDArray[np.float64]:
        n = len(messages)
        kinds, known = np.zeros(n, np.uint8), np.zeros(n, np.int8)
        identities, amounts = np.zeros(n, np.uint64), np.zeros(n, np.int64)
        counts, known_at_us = np.zeros(n, np.bool_), np.zeros(n, np.int64)
        for i, message in enumerate(messages):
            if isinstance(message, ProfiledTransaction):
                amounts[i], counts[i] = message.amount_base_minor, message.counts
            else:
                kinds[i], known_at_us[i] = 1, message.known_at_us
                known[i] = KNOWN_CODES.get(message.known, KNOWN_NONE)
                identities[i] = transaction_hash(message.card_id, message.transaction_id)
        return self._windows.profile(
            kinds,
            [message.merchant_id for message in messages],
            identities,
            np.array([message.event_time_us for message in messages], np.int64),
            amounts,
            counts,
            known,
            known_at_us,
        )


def read_profiled(value: bytes | None) -> ProfiledTransaction | ProfiledLabel:
    """Return the message of a record of ``profiled``; every reader of the topic skips what this raises for.

    Raises:
        msgspec.MsgspecError, UnicodeDecodeError, RecursionError: It is no such message.
        ValueError: It has numbers that no card agent writes, and that the windows could not hold.
    """
    message: ProfiledTransaction | ProfiledLabel = _decode(value or b"")
    _check(message)
    return message


def _check(message: ProfiledTransaction | ProfiledLabel) -> None:
    if not EARLIEST_US <= message.event_time_us < LATEST_US:
        raise ValueError(f"event_time_us is {message.event_time_us}, which is not between 1990 and 2100")
    if isinstance(message, ProfiledLabel):
        if abs(message.known_at_us) > _LARGEST_TIME_US:
            raise ValueError(f"known_at_us is {message.known_at_us}, which is no time")
    elif message.kernel == KERNEL_VERSION and len(message.card_features) != _CARD_FEATURES_BYTES:
        raise ValueError(f"card_features has {len(message.card_features)} bytes, not {_CARD_FEATURES_BYTES}")
    elif not 0 <= message.amount_base_minor <= MAX_AMOUNT_BASE_MINOR:
        raise ValueError(f"amount_base_minor is {message.amount_base_minor}, more or less than any amount is")


def _features(read: Sequence[tuple[Record, ProfiledTransaction]], merchant: NDArray[np.float64]) -> NDArray[np.float64]:
    n = len(read)
    features = np.empty((n, len(FEATURES)))
    packed = b"".join([message.card_features for _, message in read])
    features[:, : len(CARD_FEATURES)] = np.frombuffer(packed, "<f8").reshape(n, len(CARD_FEATURES))
    if np.isinf(features[:, : len(CARD_FEATURES)]).any():
        raise ForeignRecord("a feature is infinite, which no card agent writes")
    features[:, len(CARD_FEATURES) :] = merchant
    return features
