"""Decisions as served, on disk: a cache of the ``decisions`` topic that feedback joins with, rebuilt on assignment."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lmdb
import xxhash

MAP_BYTES = 1 << 40
"""Address space reserved for one partition's store; disk is used as it fills."""
MAX_DAYS = 4_096


class DiskServedStore:
    """One database a day of event time, in one LMDB environment; days are dropped whole.

    Nothing here needs to survive a crash (the topic does), so that writes are not flushed to disk.
    """

    def __init__(self, directory: Path) -> None:
        """Start empty: what an earlier process left in ``directory`` may not have been committed."""
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        self._directory = directory
        self._environment = lmdb.open(
            str(directory), map_size=MAP_BYTES, max_dbs=MAX_DAYS, sync=False, metasync=False, writemap=True, lock=False
        )
        self._days: dict[int, Any] = {}
        self._reading: Any = None

    def put(self, day: int, items: Iterable[tuple[tuple[str, str], int, bytes]]) -> None:
        """Keep decisions of one day of event time, as (card and transaction, event time in microseconds, bytes)."""
        self._end_reading()
        database = self._days.get(day)
        if database is None:
            database = self._environment.open_db(str(day).encode())
            self._days = dict(sorted([*self._days.items(), (day, database)], reverse=True))
        with self._environment.begin(write=True, db=database) as transaction:
            for key, event_time_us, value in items:
                transaction.put(_digest(key), event_time_us.to_bytes(8, "little", signed=True) + value)

    def get(self, key: tuple[str, str]) -> tuple[int, bytes] | None:
        """(event time in microseconds, the decision's bytes), or None where there is none within the horizon."""
        if self._reading is None:
            # One snapshot serves all reads up to the next write: opening one costs ten times a read.
            self._reading = self._environment.begin()
        digest = _digest(key)
        for database in self._days.values():
            found = self._reading.get(digest, db=database)
            if found is not None:
                return int.from_bytes(found[:8], "little", signed=True), found[8:]
        return None

    def drop_before(self, day: int) -> None:
        """Forget the days before ``day``."""
        for old in [known for known in self._days if known < day]:
            self._end_reading()
            with self._environment.begin(write=True) as transaction:
                transaction.drop(self._days.pop(old), delete=True)

    def close(self) -> None:
        """Close and remove the store."""
        self._end_reading()
        self._environment.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _end_reading(self) -> None:
        if self._reading is not None:
            self._reading.abort()
            self._reading = None


def _digest(key: tuple[str, str]) -> bytes:
    # LMDB takes keys of up to 511 bytes, two identifiers can be longer; 128 bits do not collide.
    return xxhash.xxh3_128_digest(f"{key[0]}\x00{key[1]}".encode("utf-8", "surrogatepass"))
