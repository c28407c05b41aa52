"""Accounts, sessions and one-time links of the console, in a file that no topic and nobody else may read."""

import hashlib
import math
import re
import secrets
import sqlite3
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Final, NamedTuple

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from pipeline.console.roles import ROLES, Role

LINK_S: Final = 15 * 60
"""Seconds for which a one-time link works."""
IDLE_S: Final = 8 * 3_600
"""Seconds without a request of a person after which a session ends."""
SESSION_S: Final = 24 * 3_600
"""Seconds after which a session ends in any case."""
ATTEMPTS_S: Final = 15 * 60
"""Seconds for which an attempt to sign in counts for its address; longest wait for the next one."""
COUNTED_S: Final = 24 * 3_600
"""Seconds for which it counts for its address and name together."""
MOST_ATTEMPTS: Final = {"name": 10, "address": 30}
"""Attempts at a name from one address without a wait; attempts of an address at all names within `ATTEMPTS_S`."""
DELAY_S: Final = 30
"""Wait after the last of these attempts at a name; it doubles with each one that follows."""
LEAST_PASSWORD: Final = 12
"""Characters of a password."""
MOST_PASSWORD: Final = 1_024
_SEEN_S: Final = 60
"""Seconds between two notes of a session's last request."""
_BUSY_S: Final = 10.0
_HASHES_AT_A_TIME: Final = 2
"""Passwords hashed at a time: each takes 64 MB."""
_NAME: Final = re.compile(r"\w[\w.@+-]{0,63}")
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS accounts (
    name TEXT PRIMARY KEY, role TEXT NOT NULL, password TEXT, disabled INTEGER NOT NULL DEFAULT 0,
    seeded INTEGER NOT NULL DEFAULT 0) STRICT;
CREATE TABLE IF NOT EXISTS sessions (
    token BLOB PRIMARY KEY, account TEXT NOT NULL, csrf TEXT NOT NULL, agent BLOB NOT NULL,
    created_s REAL NOT NULL, seen_s REAL NOT NULL, expires_s REAL NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS links (
    token BLOB PRIMARY KEY, account TEXT NOT NULL, role TEXT NOT NULL, expires_s REAL NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS attempts (subject TEXT NOT NULL, at_s REAL NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS attempts_of ON attempts (subject, at_s);
CREATE TABLE IF NOT EXISTS keys (name TEXT PRIMARY KEY, key BLOB NOT NULL) STRICT;
"""


class AccountError(RuntimeError):
    """An account, or the file of accounts, cannot be used; the text says what to do."""


class TooManyAttempts(AccountError):
    """A name or an address has had all its attempts to sign in."""


class SessionEnded(AccountError):
    """A session ended with this request; the text says whose, and why."""


class Account(NamedTuple):
    """The account that makes a request."""

    name: str
    role: Role
    csrf: str
    """Secret that each form of its session carries."""


class AccountRow(NamedTuple):
    """An account as it is stored."""

    name: str
    role: Role
    has_password: bool
    disabled: bool


def digest(token: str) -> bytes:
    """Return what is stored of a token, or of the name of a browser."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


class Accounts:
    """The file of accounts; any number of threads and processes may use it.

    Args:
        path: The file, which is made with its directory.
        clock: Returns the time in seconds since 1970.

    Raises:
        AccountError: Others may read the file, or it cannot be used.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._clock, self._lock = clock, threading.RLock()
        self._hasher, self._hashing = PasswordHasher(), threading.Semaphore(_HASHES_AT_A_TIME)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.touch(mode=0o600)
            if path.stat().st_mode & 0o077:
                raise AccountError(f"others may read {path}: chmod 600 it")
            self._database = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
            for pragma in ("secure_delete = ON", "journal_mode = WAL", "synchronous = NORMAL"):
                self._database.execute(f"PRAGMA {pragma}")
            self._database.executescript(_TABLES)
            self._database.execute("INSERT OR IGNORE INTO keys VALUES ('blind', ?)", (secrets.token_bytes(32),))
            ((self.blind_key,),) = self._database.execute("SELECT key FROM keys WHERE name = 'blind'")
        except (OSError, sqlite3.Error) as error:
            raise AccountError(f"the accounts in {path} cannot be used: {error}") from None

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            with self._database:
                yield self._database

    # --- Accounts -----------------------------------------------------------------------------------------------------

    def rows(self) -> list[AccountRow]:
        """Return all accounts by name."""
        query = "SELECT name, role, password IS NOT NULL, disabled FROM accounts ORDER BY name"
        with self._lock:
            return [AccountRow(name, role, bool(p), bool(d)) for name, role, p, d in self._database.execute(query)]

    def account(self, name: str) -> AccountRow | None:
        """Return an account; None where there is none."""
        return next((row for row in self.rows() if row.name == name), None)

    def add(self, name: str, role: Role, password: str | None) -> None:
        """Add an account.

        Args:
            name: Its name: letters, digits and ``.@+-_``.
            role: Its role.
            password: Its password; None for an account that signs in by links until it sets one.

        Raises:
            AccountError: There is one, or name or password cannot be used.
        """
        check_name(name)
        hashed = None if password is None else self.hashed(password)
        with self._changing() as database:
            if database.execute("SELECT 1 FROM accounts WHERE name = ?", (name,)).fetchone():
                raise AccountError(f"there is an account {name}: choose another name")
            database.execute("INSERT INTO accounts (name, role, password) VALUES (?, ?, ?)", (name, role, hashed))

    def set_role(self, name: str, role: Role) -> None:
        """Give an account another role, from its next request on; raises `AccountError` where there is none."""
        self._update("UPDATE accounts SET role = ? WHERE name = ?", role, name)

    def set_disabled(self, name: str, disabled: bool) -> None:
        """Disable an account and end its sessions, or enable it; raises `AccountError` where there is none."""
        self._update("UPDATE accounts SET disabled = ? WHERE name = ?", int(disabled), name)
        if disabled:
            self._end_sessions(name)

    def set_password(self, name: str, password: str) -> None:
        """Change a password and end the account's sessions; raises `AccountError` where there is none."""
        self._update("UPDATE accounts SET password = ? WHERE name = ?", self.hashed(password), name)
        self._end_sessions(name)

    def _update(self, statement: str, *values: object) -> None:
        with self._changing() as database:
            if database.execute(statement, values).rowcount == 0:
                raise AccountError(f"there is no account {values[-1]}: `fraud-pipeline console account list`")

    def hashed(self, password: str) -> str:
        """Return the argon2 hash of a password; raises `AccountError` where it is too short or too long."""
        if not LEAST_PASSWORD <= len(password) <= MOST_PASSWORD:
            raise AccountError(f"a password has {LEAST_PASSWORD} to {MOST_PASSWORD} characters: choose another one")
        with self._hashing:
            return self._hasher.hash(password)

    def seed(self, path: Path) -> None:
        """Take accounts from a file, and disable those that an earlier one had and this one lacks.

        Args:
            path: A TOML file with a table ``[accounts.NAME]`` an account, of ``role`` and ``password`` (argon2 hash).

        Raises:
            AccountError: It cannot be read, or an account in it cannot be used.
        """
        try:
            accounts = tomllib.loads(path.read_text(encoding="utf-8"))["accounts"]
            rows = [(check_name(name), str(given["role"]), str(given["password"])) for name, given in accounts.items()]
            for _, role, hashed in rows:
                if role not in ROLES:
                    raise AccountError(f"{path} has the role {role!r}: choose of {', '.join(ROLES)}")
                self._hasher.check_needs_rehash(hashed)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, InvalidHashError) as error:
            raise AccountError(
                f"{path} cannot be used ({type(error).__name__}): write it with `console account add --print`"
            ) from None
        with self._changing() as database:
            database.execute("UPDATE accounts SET disabled = 1 WHERE seeded = 1")
            database.executemany(
                "INSERT INTO accounts (name, role, password, seeded) VALUES (?, ?, ?, 1) ON CONFLICT (name) DO UPDATE "
                "SET role = excluded.role, password = excluded.password, seeded = 1, disabled = 0",
                rows,
            )

    # --- Signing in ---------------------------------------------------------------------------------------------------

    def verified(self, name: str, password: str, address: str) -> AccountRow | None:
        """Return the account of a name and a password; None where they are wrong, or it is disabled.

        Args:
            name: Name as it was typed.
            password: Password as it was typed.
            address: Address of the client. It bounds the attempts at a name together with the name, so that nobody
                keeps others from signing in elsewhere.

        Raises:
            TooManyAttempts: The address has had its attempts, or those at this name.
        """
        subjects = {"name": f"name {digest(name).hex()} from {address}", "address": f"address {address}"}
        # Counted first: attempts at the same time are all counted.
        counted = self._count_attempt(subjects)
        with self._lock:
            query = "SELECT password FROM accounts WHERE name = ? AND NOT disabled"
            found = self._database.execute(query, (name,)).fetchone()
        hashed = found[0] if found and found[0] else None
        with self._hashing:
            try:
                self._hasher.verify(hashed or self._hash_of_nobody, password[: MOST_PASSWORD + 1])
            except VerificationError:
                return None
        if hashed is None:
            return None
        with self._changing() as database:
            # An address keeps the failures of others behind it.
            database.execute("DELETE FROM attempts WHERE subject = ? OR rowid = ?", (subjects["name"], counted))
        return self.account(name)

    @cached_property
    def _hash_of_nobody(self) -> str:
        """A hash as slow as an account's, to which no password is known: who tries names learns nothing."""
        return self._hasher.hash(secrets.token_hex())

    def _count_attempt(self, subjects: dict[str, str]) -> int | None:
        """Return the row of an attempt that was counted for the address."""
        now_s = self._clock()
        with self._changing() as database:
            database.execute("DELETE FROM attempts WHERE at_s < ?", (now_s - COUNTED_S,))
            query = "SELECT count(*), max(at_s) FROM attempts WHERE subject = ? AND at_s >= ?"
            times, newest_s = database.execute(query, (subjects["name"], 0)).fetchone()
            more = times - MOST_ATTEMPTS["name"]
            wait_s = 0.0 if more < 0 else newest_s + min(DELAY_S * 2.0 ** min(more, 10), ATTEMPTS_S) - now_s
            if (
                database.execute(query, (subjects["address"], now_s - ATTEMPTS_S)).fetchone()[0]
                >= MOST_ATTEMPTS["address"]
            ):
                wait_s = ATTEMPTS_S
            if wait_s > 0:
                raise TooManyAttempts(
                    f"There were too many attempts to sign in: wait {math.ceil(wait_s)} seconds, or ask for a link "
                    "(`fraud-pipeline console link`)."
                )
            insert = "INSERT INTO attempts VALUES (?, ?)"
            return [database.execute(insert, (subject, now_s)).lastrowid for subject in subjects.values()][-1]

    def link(self, role: Role, name: str) -> str:
        """Return the token of a new one-time link, which signs in ``name``, in ``role`` from then on."""
        check_name(name)
        if (existing := self.account(name)) is not None and existing.disabled:
            raise AccountError(f"the account {name} is disabled: name another one")
        token = secrets.token_urlsafe(32)
        with self._changing() as database:
            database.execute("DELETE FROM links WHERE expires_s < ?", (self._clock(),))
            database.execute(
                "INSERT INTO links VALUES (?, ?, ?, ?)", (digest(token), name, role, self._clock() + LINK_S)
            )
        return token

    def find_link(self, token: str) -> tuple[str, Role] | None:
        """Return name and role of a link that works, without using it up."""
        query = "SELECT account, role FROM links WHERE token = ? AND expires_s >= ?"
        with self._lock:
            found = self._database.execute(query, (digest(token), self._clock())).fetchone()
        return found or None

    def use_link(self, token: str) -> AccountRow | None:
        """Use a link up, and return its account; None where it does not work, any more or at all."""
        with self._changing() as database:
            query = "DELETE FROM links WHERE token = ? RETURNING account, role, expires_s"
            found = database.execute(query, (digest(token),)).fetchone()
            if found is None or found[2] < self._clock():
                return None
            upsert = (
                "INSERT INTO accounts (name, role) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET role = excluded.role"
            )
            database.execute(upsert, found[:2])
        row = self.account(found[0])
        return None if row is None or row.disabled else row

    # --- Sessions -----------------------------------------------------------------------------------------------------

    def begin_session(self, name: str, agent: str) -> str:
        """Return the token of a new session of an account, for the browser that names itself ``agent``."""
        token, now_s = secrets.token_urlsafe(32), self._clock()
        values = (digest(token), name, secrets.token_urlsafe(32), digest(agent), now_s, now_s, now_s + SESSION_S)
        with self._changing() as database:
            database.execute("DELETE FROM sessions WHERE expires_s < ? OR seen_s < ?", (now_s, now_s - IDLE_S))
            database.execute("INSERT INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?)", values)
        return token

    def session(self, token: str, agent: str | None, active: bool) -> Account | None:
        """Return the account of a session; None where there is none.

        Args:
            token: Token of the cookie.
            agent: Name that the browser gives itself; None where it is not looked at.
            active: Whether a person acts; a page that refreshes itself does not keep a session.

        Raises:
            SessionEnded: It was too old, or its token comes from another browser, so that it was stolen.
        """
        own = None if agent is None else digest(agent)
        query = (
            "SELECT name, role, csrf, agent, seen_s, expires_s FROM sessions JOIN accounts ON name = account "
            "WHERE token = ? AND NOT disabled"
        )
        now_s = self._clock()
        with self._lock:
            found = self._database.execute(query, (digest(token),)).fetchone()
        if found is None:
            return None
        *values, browser, seen_s, expires_s = found
        if (stolen := own not in (None, browser)) or now_s >= min(expires_s, seen_s + IDLE_S):
            self.end_session(token)
            raise SessionEnded(
                f"the session of {values[0]} {'was used by another browser' if stolen else 'is too old'}"
            )
        if active and now_s - seen_s >= _SEEN_S:
            with self._changing() as database:
                database.execute("UPDATE sessions SET seen_s = ? WHERE token = ?", (now_s, digest(token)))
        return Account(*values)

    def end_session(self, token: str) -> None:
        """End a session, if there is one."""
        with self._changing() as database:
            database.execute("DELETE FROM sessions WHERE token = ?", (digest(token),))

    def _end_sessions(self, name: str) -> None:
        with self._changing() as database:
            database.execute("DELETE FROM sessions WHERE account = ?", (name,))

    @property
    def sessions(self) -> int:
        """Number of sessions that have not ended."""
        now_s = self._clock()
        query = "SELECT count(*) FROM sessions WHERE expires_s > ? AND seen_s > ?"
        with self._lock:
            ((count,),) = self._database.execute(query, (now_s, now_s - IDLE_S))
        return int(count)


def check_name(name: str) -> str:
    """Return a name of an account; raises `AccountError` where it cannot be one."""
    if not _NAME.fullmatch(name):
        raise AccountError(
            "the name of an account begins with a letter or a digit, and has at most 64 letters, digits and .@+-_: "
            "choose another one"
        )
    return name
