"""The tables of the console's database, which are a replay of topics, and how the file is opened."""

import os
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from pipeline.settings import Settings

SCHEMA_VERSION: Final = 2
"""Another one has the file built anew from the topics."""
BUSY_S: Final = 30.0
_PARTITION_BITS: Final = 47
_CACHE_KIB: Final = 64 * 1024

TABLES: Final = {
    "decisions": """
        id INTEGER PRIMARY KEY, transaction_id TEXT, card_id TEXT, merchant_id TEXT, event_us INTEGER, amount TEXT,
        currency TEXT, amount_base REAL, score REAL, action TEXT, case_id TEXT""",
    "decision_bodies": "id INTEGER PRIMARY KEY, case_id TEXT, source TEXT, event_us INTEGER, body BLOB",
    "alerts": """
        id INTEGER PRIMARY KEY, alert_id TEXT, case_id TEXT, card_id TEXT, transaction_id TEXT, merchant_id TEXT,
        event_us INTEGER, raised_us INTEGER, amount_base REAL, currency TEXT, severity REAL, selection TEXT,
        reason TEXT, reason_weight REAL, source TEXT, log_partition INTEGER, log_offset INTEGER, log_row INTEGER,
        linked INTEGER, known TEXT, body BLOB, UNIQUE (case_id, alert_id)""",
    "labels": """
        topic TEXT, partition INTEGER, position INTEGER, card_id TEXT, transaction_id TEXT, label_id TEXT,
        known_us INTEGER, body BLOB, PRIMARY KEY (topic, partition, position)""",
    "events": "id INTEGER PRIMARY KEY, event_id TEXT, case_id TEXT, card_id TEXT, broker_us INTEGER, body BLOB",
    "cases": """
        case_id TEXT PRIMARY KEY, card_id TEXT, is_open INTEGER, blind INTEGER, blind_rank INTEGER, raised_us INTEGER,
        last_raised_us INTEGER, alerts INTEGER, money REAL, currency TEXT, loss REAL, reason TEXT, holder TEXT,
        holder_until_us INTEGER, snoozed_until_us INTEGER, first_event_us INTEGER, newest_event_us INTEGER,
        acted_us INTEGER""",
    "companions": "case_id TEXT PRIMARY KEY",
    "identifiers": "value TEXT, field TEXT, case_id TEXT, PRIMARY KEY (value, field, case_id)",
    "source_ends": "partition INTEGER PRIMARY KEY, behind INTEGER",
    "positions": "topic TEXT, partition INTEGER, behind INTEGER, PRIMARY KEY (topic, partition)",
    "owed_companions": "partition INTEGER PRIMARY KEY, owed INTEGER",
    "forgotten": "card_id TEXT PRIMARY KEY",
}
"""Columns by table."""
NO_ROWID: Final = ("labels", "companions", "identifiers", "positions", "forgotten")
_FIRST_INDEXES: Final = (
    "alerts_by_transaction ON alerts (transaction_id, card_id)",
    "labels_by_transaction ON labels (transaction_id, card_id)",
    "events_by_case ON events (case_id)",
    "alerts_of_case ON alerts (case_id, alert_id, known, selection, event_us, raised_us, amount_base, severity, "
    "reason_weight)",
)
"""Indexes that writing looks up."""
INDEXES: Final = (
    "decisions_by_card ON decisions (card_id, event_us)",
    "decisions_by_merchant ON decisions (merchant_id, event_us)",
    "decisions_by_transaction ON decisions (transaction_id)",
    "bodies_by_source ON decision_bodies (source)",
    "alerts_not_linked ON alerts (log_partition, log_offset) WHERE linked = 0",
    "alerts_known ON alerts (known, event_us) WHERE known IS NOT NULL",
    "labels_by_id ON labels (label_id) WHERE label_id IS NOT NULL",
    "labels_by_time ON labels (known_us)",
    "events_by_id ON events (event_id)",
    "cases_by_loss ON cases (is_open, blind, loss DESC, case_id, snoozed_until_us, holder, holder_until_us)",
    "cases_by_rank ON cases (is_open, blind, blind_rank, case_id, snoozed_until_us, holder, holder_until_us)",
    "cases_by_first ON cases (first_event_us)",
    "cases_by_age ON cases (is_open, newest_event_us)",
    "identifiers_by_case ON identifiers (case_id)",
)


def database_file(settings: Settings) -> Path:
    """Return the file of the console's database."""
    return settings.data_dir / "console.sqlite"


def row_id(partition: int, offset: int) -> int:
    """Return the id of a row that a record makes; ascending within a partition."""
    return partition << _PARTITION_BITS | offset


def partition_range(partition: int) -> tuple[int, int]:
    """Return the first id of a partition, and the one behind its last."""
    return row_id(partition, 0), row_id(partition + 1, 0)


def open_database(path: Path) -> sqlite3.Connection:
    """Return a connection that writes; a file that is no database, or of another version, is made anew.

    The file may be read by its owner alone, and what is deleted is overwritten.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        return _opened(path)
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise
        for suffix in ("", "-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        return _opened(path)


def _opened(path: Path) -> sqlite3.Connection:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    for pragma in (
        "journal_mode = WAL", "synchronous = NORMAL", "secure_delete = ON", f"cache_size = -{_CACHE_KIB}",
        "temp_store = MEMORY",
    ):  # fmt: skip
        connection.execute(f"PRAGMA {pragma}")
    ((version,),) = connection.execute("PRAGMA user_version").fetchall()
    if version != SCHEMA_VERSION:
        make_tables(connection)
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    return connection


def make_tables(connection: sqlite3.Connection) -> None:
    """Make all tables, empty and without `INDEXES`."""
    connection.execute("BEGIN IMMEDIATE")
    with connection:
        connection.execute("CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID")
        connection.execute("DELETE FROM meta")
        for name, columns in TABLES.items():
            connection.execute(f"DROP TABLE IF EXISTS {name}")
            suffix = " WITHOUT ROWID" if name in NO_ROWID else ""
            connection.execute(f"CREATE TABLE {name} ({columns}){suffix}")
        make_indexes(connection, _FIRST_INDEXES)


def make_indexes(connection: sqlite3.Connection, indexes: Iterable[str] = INDEXES) -> None:
    """Make indexes; those that only reading needs take less time once the tables are full."""
    for index in indexes:
        connection.execute(f"CREATE INDEX {index}")


def open_for_reading(path: Path) -> sqlite3.Connection:
    """Return a connection that only reads; each thread needs its own."""
    connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA query_only = ON")
    return connection
