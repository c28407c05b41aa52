"""The console's database: what the topics say of cases, for any number of readers."""

import hashlib
import hmac
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from pipeline.console.batches import BatchWriter
from pipeline.console.cases import (
    cutoff_us,
    forget_cards,
    prune_cases,
    prune_decisions,
    prune_events,
    prune_labels,
    refresh,
)
from pipeline.console.queries import CaseReader, UnlinkedAlert
from pipeline.console.tables import make_indexes, make_tables, open_database
from pipeline.console.views import StoreFigures
from pipeline.settings import Settings
from schemas.records import Record

log = logging.getLogger(__name__)

Partition = tuple[str, int]
"""Topic without prefix, and number."""
T = TypeVar("T")
_WAIT_S: Final = 0.5


class CaseStore(CaseReader):
    """One SQLite file, made anew from the topics wherever it does not fit them.

    One thread writes (`apply`); any threads read. What the file holds depends on the topics, the settings and the key
    alone: never on when or in what pieces they were read.

    Args:
        path: File of the database; made where it is missing.
        settings: Settings of the console.
        blind_key: Secret that chooses the blind cases and their order.
    """

    def __init__(self, path: Path, settings: Settings, blind_key: bytes) -> None:
        super().__init__(path)
        self._settings, self._key = settings, blind_key
        self._writing = threading.RLock()
        self._changed = threading.Condition()
        self.awaited = threading.Event()
        """Set while somebody waits for a write."""
        self._waiters = 0
        self._database = open_database(path)
        self._writer = BatchWriter(self._database, settings, blind_key)
        self._writer.stream_us, self._writer.broker_us = self._meta("stream_us", 0), self._meta("broker_us", 0)
        self._rebuilding = ""
        """Identity of the topics that the file is made from, until it has caught up with them."""
        self._pruned_us = 0, 0
        """Times before which everything was pruned since the start: event time, and the broker's."""

    def close(self) -> None:
        """Close the file; no thread may use the store any more."""
        with self._writing:
            for connection in (*self._readers, self._database):
                connection.close()

    # --- Writing -----------------------------------------------------------------------------------------------

    def begin(self, identity: Mapping[str, object]) -> dict[Partition, int]:
        """Return the positions to read from; the file is made anew where it is of other topics or another key.

        A file that had not caught up when the program ended is made anew, too: until then nothing is synced to disk.

        Args:
            identity: Names the cluster and its topics.
        """
        fingerprint = hmac.digest(self._key, b"console", hashlib.sha256).hex()
        own = msgspec.json.encode({**identity, "key": fingerprint}, order="sorted").decode()
        with self._writing:
            if own not in (self._meta("identity", ""), self._rebuilding):
                log.info("the console's database is made from the topics")
                make_tables(self._database)
                self._database.execute("PRAGMA synchronous = OFF")
                self._rebuilding = own
                self._writer.stream_us = self._writer.broker_us = 0
                self._writer.forgotten.clear()
                self._pruned_us = 0, 0
        return self.positions()

    def apply(
        self, records: Sequence[Record], positions: Mapping[Partition, int], *, caught_up: bool
    ) -> frozenset[str]:
        """Write records and the positions behind them, all or nothing; a new file has no cases until it has caught up.

        Args:
            records: Records of the topics, in the order of each log.
            positions: Offset behind them by partition.
            caught_up: Whether every topic has been read to its end once; only then is anything of cases dropped.

        Returns:
            The cases that have changed.
        """
        with self._writing:
            with self._transaction():
                touched: Collection[str] = self._writer.write(records)
                forgotten = self._writer.to_delete if caught_up or not self._rebuilding else ()
                gone = forget_cards(self._database, forgotten)
                if self._rebuilding:
                    touched = self._all_cases() if caught_up else ()
                refresh(self._database, touched, self._key)
                if self._rebuilding and caught_up:
                    make_indexes(self._database)
                touched = {*touched, *gone, *self._prune(caught_up=caught_up, changed=bool(touched))}
                self._database.executemany(
                    "INSERT OR REPLACE INTO positions VALUES (?, ?, ?)",
                    [(topic, partition, behind) for (topic, partition), behind in positions.items()],
                )
                self._set_meta(stream_us=self._writer.stream_us, broker_us=self._writer.broker_us)
            if self._rebuilding and caught_up:
                self._end_rebuilding()
            if forgotten:
                # Else a copy would stay in the log of the database for a while.
                self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                self._writer.to_delete.clear()
        self._notify()
        return frozenset(touched)

    def _all_cases(self) -> list[str]:
        """Return the cases in the order of their first alerts, in which the file is read fastest."""
        query = "SELECT case_id FROM alerts GROUP BY case_id ORDER BY min(id)"
        return [case_id for (case_id,) in self._database.execute(query)]

    def _end_rebuilding(self) -> None:
        self._database.execute("PRAGMA synchronous = NORMAL")
        self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with self._transaction():
            self._set_meta(identity=self._rebuilding)
        self._rebuilding = ""

    def _prune(self, *, caught_up: bool, changed: bool) -> list[str]:
        before_us, broker_us = cutoff_us(self._writer.stream_us), cutoff_us(self._writer.broker_us)
        if not caught_up:
            return []
        pruned_us, pruned_broker_us = self._pruned_us
        gone: list[str] = []
        if changed or before_us > pruned_us or broker_us > pruned_broker_us:
            gone = prune_cases(self._database, before_us, broker_us)
        if before_us > pruned_us:
            prune_decisions(self._database, before_us)
        if gone or before_us > pruned_us or self._writer.oldest_label_us < before_us:
            prune_labels(self._database, before_us)
        if gone or broker_us > pruned_broker_us:
            prune_events(self._database, broker_us)
        self._pruned_us = before_us, broker_us
        return gone

    def add_links(self, found: Mapping[int, Mapping[str, str]]) -> frozenset[str]:
        """Add values that link cases, by id of the alert; an alert without any is not asked for again.

        Returns:
            The cases that have changed.
        """
        touched: set[str] = set()
        with self._writing, self._transaction():
            for number, values in found.items():
                row = self._database.execute("SELECT case_id FROM alerts WHERE id = ?", (number,)).fetchone()
                self._database.execute("UPDATE alerts SET linked = 1 WHERE id = ?", (number,))
                if row is not None and values:
                    touched.add(row[0])
                    self._database.executemany(
                        "INSERT OR IGNORE INTO identifiers VALUES (?, ?, ?)",
                        [(value, field, row[0]) for field, value in values.items()],
                    )
        self._notify()
        return frozenset(touched)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        with self._database:
            yield

    def _meta(self, name: str, otherwise: T) -> T:
        row = self._database.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return otherwise if row is None else row[0]

    def _set_meta(self, **values: object) -> None:
        self._database.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", list(values.items()))

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def wait_until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until a condition holds that only a write can bring about; return whether it does."""
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            self._waiters += 1
            self.awaited.set()
            try:
                while not (found := condition()) and (left_s := deadline_s - time.monotonic()) > 0:
                    self._changed.wait(min(left_s, _WAIT_S))
            finally:
                self._waiters -= 1
                if not self._waiters:
                    self.awaited.clear()
        return found

    # --- Reading -----------------------------------------------------------------------------------------------

    @property
    def stream_us(self) -> int:
        """Newest event time of a decision or alert."""
        return self._writer.stream_us

    @property
    def refused(self) -> int:
        """Records that could not be read since the start."""
        return sum(self._writer.refused.values())

    def unlinked_alerts(self, limit: int) -> list[UnlinkedAlert]:
        """Return alerts whose transactions have not been looked up, in the order of ``profiled``."""
        # Until the file has caught up there is no index for this.
        return [] if self._rebuilding else super().unlinked_alerts(limit)

    def figures(self) -> StoreFigures:
        """Return figures of the whole."""
        return super().figures()._replace(decisions=self._writer.decisions)
