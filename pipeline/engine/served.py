"""What feedback keeps in its store: decisions as served, what is known of them, and which are to be presumed.

Store keys: ``k`` + digest: the transaction's event time; ``s`` + day of event time + digest: its decision's own bytes;
``n`` + digest: what is known of it, once something is; ``m`` + time of maturity + digest: the rate at which it was
sampled, until it is presumed legitimate.
"""

import copy
import struct
from collections.abc import Sequence
from itertools import islice
from typing import Final, NamedTuple

import msgspec

from pipeline.engine.layout import day_key, day_of, day_of_key, digest_of_key, time_key
from pipeline.engine.state import Store
from pipeline.learning.labels import FRAUD, LEGITIMATE, NOTHING, LabelState

_TIME: Final = b"k"
_SERVED: Final = b"s"
_KNOWN: Final = b"n"
_MATURING: Final = b"m"
_NEVER: Final = 2**63 - 1
_NO_LABEL: Final = -1
_HEAD: Final = struct.Struct("<bqbII")
_RATE: Final = struct.Struct("<d")
_VALUES: Final = (NOTHING, LEGITIMATE, FRAUD)


class ServedState(msgspec.Struct):
    """What of it is not in the store."""

    swept: bytes = _SERVED
    """No served decision lies before."""
    matures_us: int = _NEVER
    """Nothing matures before."""


class Served(NamedTuple):
    """A decision as served."""

    event_time_us: int
    decision: bytes


class Known(msgspec.Struct):
    """What is known of a transaction, and how many examples have told it."""

    state: LabelState | None = None
    told: int = 0


class Matured(NamedTuple):
    """A sampled transaction whose maturity has come."""

    digest: bytes
    at_us: int
    rate: float


class ServedDecisions:
    """Decisions by the digest of their transaction, forgotten a bounded number at a time."""

    def __init__(self, store: Store, state: ServedState | None = None) -> None:
        self._store = store
        self._state = state or ServedState()
        self._settled = copy.copy(self._state)

    @property
    def state(self) -> ServedState:
        """For the dump."""
        return self._state

    def settle(self) -> None:
        """The batch is committed (the store is settled by its owner)."""
        self._settled = copy.copy(self._state)

    def undo(self) -> None:
        """The batch is not committed."""
        self._state = copy.copy(self._settled)

    def file(self, digest: bytes, event_time_us: int, decision: bytes) -> None:
        """Keep a decision; a later one of the same transaction takes its place."""
        self._store.put(_TIME + digest, event_time_us.to_bytes(8, "big"))
        self._store.put(day_key(_SERVED, day_of(event_time_us), digest), decision)

    def let_mature(self, digest: bytes, at_us: int, rate: float) -> None:
        """Have a decision come back from `take_matured` at ``at_us``."""
        self._store.put(time_key(_MATURING, at_us, digest), _RATE.pack(rate))
        self._state.matures_us = min(self._state.matures_us, at_us)

    def take_matured(self, now_us: int, at_most: int) -> list[Matured]:
        """Up to ``at_most`` of those that have matured, in the order of their maturity; each comes once."""
        state = self._state
        if state.matures_us > now_us:
            return []
        taken: list[Matured] = []
        next_us = _NEVER
        for key, packed in self._store.scan(time_key(_MATURING, state.matures_us), _MATURING + b"\xff" * 8):
            at_us = int.from_bytes(key[1:9], "big")
            if at_us > now_us or len(taken) == at_most:
                next_us = at_us
                break
            taken.append(Matured(key[9:], at_us, _RATE.unpack(packed)[0]))
        state.matures_us = next_us
        for one in taken:
            self._store.delete(time_key(_MATURING, one.at_us, one.digest))
        return taken

    def find(self, digests: Sequence[bytes]) -> list[Served | None]:
        """The decisions of ``digests``, None where none is kept."""
        store = self._store
        times = [
            None if time is None else int.from_bytes(time, "big")
            for time in store.get_many([_TIME + digest for digest in digests])
        ]
        keys = [
            day_key(_SERVED, day_of(time), digest)
            for digest, time in zip(digests, times, strict=True)
            if time is not None
        ]
        decisions = iter(store.get_many(keys) if keys else [])
        found: list[Served | None] = []
        for time in times:
            decision = None if time is None else next(decisions)
            found.append(None if time is None or decision is None else Served(time, decision))
        return found

    def known(self, digest: bytes) -> Known:
        """What is known of a transaction."""
        packed = self._store.get(_KNOWN + digest)
        if packed is None:
            return Known()
        rank, labelled_at_us, known, changes, told = _HEAD.unpack(packed)
        return Known(None if rank == _NO_LABEL else LabelState(rank, labelled_at_us, _VALUES[known], changes), told)

    def learn(self, digest: bytes, known: Known) -> None:
        """Keep what is known of a transaction now."""
        state = known.state or LabelState(_NO_LABEL, 0, NOTHING, 0)
        packed = _HEAD.pack(state.rank, state.labelled_at_us, _VALUES.index(state.known), state.changes, known.told)
        self._store.put(_KNOWN + digest, packed)

    def forget_before(self, day: int, at_most: int) -> None:
        """Forget up to ``at_most`` of the decisions about transactions before ``day``, and what is known of them."""
        start, end = self._state.swept, day_key(_SERVED, day)
        if start >= end:
            return
        keys = [key for key, _ in islice(self._store.scan(start, end), at_most)]
        self._state.swept = end if len(keys) < at_most else keys[-1] + b"\x00"
        times = self._store.get_many([_TIME + digest_of_key(key) for key in keys])
        for key, time in zip(keys, times, strict=True):
            digest = digest_of_key(key)
            self._store.delete(key)
            # One that was decided again since, with another time, stands under its own day.
            if time is not None and day_of(int.from_bytes(time, "big")) == day_of_key(key):
                self._store.delete(_TIME + digest)
                self._store.delete(_KNOWN + digest)
