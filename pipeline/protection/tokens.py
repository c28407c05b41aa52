"""Tokens in the place of card numbers and other identifiers, made before a record reaches the pipeline.

A token is a keyed hash of a value. Each value has a random key of its own in a database, found by a hash under a secret
that is not in it: whoever destroys the key of a value (`TokenKeys.forget`) leaves tokens that nobody can link to it.
"""

import base64
import hashlib
import hmac
import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import msgspec

from pipeline.features.active import active_declaration
from pipeline.protection.signing import KeyFileError, secret_of
from schemas.codec import MAX_VALUE_BYTES

if TYPE_CHECKING:
    from pipeline.settings import Settings

CARD_ID: Final = "card_id"
_KEY_BYTES: Final = 32
_TOKEN_BYTES: Final = 20
_MOST_ASKED: Final = 500
"""Values of one query; SQLite takes a thousand at most in old releases."""
_BUSY_S: Final = 30.0

Name = tuple[str, str]
"""A field and its value."""
_NO_NAME: Final = b"\0"
"""No field's name is empty; the row of this text shows with which secret a database was made."""
_FIELDS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_TEXT: Final = msgspec.json.Decoder(str)
_NULL: Final = msgspec.Raw(b"null")


class NotTokenised(ValueError):
    """A record that cannot be tokenised; ``code`` says why, as dead letters do. The text repeats no value."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class TokenKeys:
    """Keys of values, in an SQLite database that several processes of one machine may use at a time.

    Args:
        path: File of the database, which is made when it is missing.
        secret: Key of the hash by which a value's row is found; the database is of no use without it.
    """

    def __init__(self, path: Path, secret: bytes) -> None:
        self._path, self._secret = path, secret
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.touch(mode=0o600)
            if path.stat().st_mode & 0o077:
                raise KeyFileError(f"others may read {path}: chmod 600 it")
            self._database = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)
            # What is deleted is overwritten, and a key is on the disk before a token of it is anywhere.
            for pragma in ("secure_delete = ON", "synchronous = FULL", "journal_mode = WAL"):
                self._database.execute(f"PRAGMA {pragma}")
            self._database.execute("CREATE TABLE IF NOT EXISTS keys (name BLOB PRIMARY KEY, key BLOB) WITHOUT ROWID")
            self._check_secret()
        except (OSError, sqlite3.Error) as error:
            raise KeyFileError(f"the token keys in {path} cannot be used: {error}") from None

    def _check_secret(self) -> None:
        """Raise `KeyFileError` where the database was made with another secret: no value would be found in it."""
        own = hmac.digest(self._secret, _NO_NAME, hashlib.sha256)
        self._database.execute("BEGIN IMMEDIATE")
        with self._database:
            insert = "INSERT INTO keys SELECT ?, x'' WHERE NOT EXISTS (SELECT 1 FROM keys)"
            self._database.execute(insert, (own,))
        if not self._keys_of([own]):
            self._database.close()
            raise KeyFileError(
                f"{self._path} was made with another secret, so that all values would get other tokens and none could "
                "be forgotten: set FRAUD_PIPELINE_TOKEN_SECRET_FILE to that one, or name another database with "
                "FRAUD_PIPELINE_TOKEN_DATABASE_FILE"
            )

    @classmethod
    def from_settings(cls, settings: "Settings") -> Self:
        """Open the database of the settings; raises `KeyFileError`."""
        if settings.token_secret_file is None:
            raise KeyFileError(
                "tokens need a secret: write one with `openssl rand -hex 32`, and set FRAUD_PIPELINE_TOKEN_SECRET_FILE"
            )
        return cls(settings.token_database, secret_of(settings.token_secret_file))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()

    def keys(self, names: Iterable[Name]) -> dict[Name, bytes]:
        """Return the key of each value; those without one get it, for good, before this returns.

        Raises:
            KeyFileError: The database cannot be used any more.
        """
        with self._usable():
            return self._found_or_made({self._row(name): name for name in names})

    def _found_or_made(self, rows: Mapping[bytes, Name]) -> dict[Name, bytes]:
        found: dict[bytes, bytes] = {}
        asked = list(rows)
        for first in range(0, len(asked), _MOST_ASKED):
            found |= self._keys_of(asked[first : first + _MOST_ASKED])
        if missing := [row for row in asked if row not in found]:
            made = [(row, secrets.token_bytes(_KEY_BYTES)) for row in missing]
            self._database.execute("BEGIN IMMEDIATE")
            with self._database:
                # Another process may have been first: its key counts.
                self._database.executemany("INSERT OR IGNORE INTO keys VALUES (?, ?)", made)
            for first in range(0, len(missing), _MOST_ASKED):
                found |= self._keys_of(missing[first : first + _MOST_ASKED])
        return {name: found[row] for row, name in rows.items()}

    def token(self, name: Name) -> str | None:
        """Return the token of a value that has a key; None where it has none, and gets none.

        Raises:
            KeyFileError: The database cannot be used any more.
        """
        with self._usable():
            keys = self._keys_of([row := self._row(name)])
        return _token(name, keys[row]) if row in keys else None

    def forget(self, name: Name) -> bool:
        """Destroy the key of a value; returns whether there was one.

        Raises:
            KeyFileError: The key is not destroyed, or its copy in the log of the database is not.
        """
        with self._usable():
            gone = self._database.execute("DELETE FROM keys WHERE name = ?", (self._row(name),)).rowcount > 0
            # Else the key would stay in the log of the database for a while.
            ((busy, _, _),) = self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        if busy:
            raise KeyFileError(
                f"the key is deleted, and a copy of it is still in {self._path}-wal, which another program uses: end "
                "that, and forget the value again"
            )
        return gone

    @contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise KeyFileError(f"the token keys in {self._path} cannot be used: {error}") from None

    def _keys_of(self, rows: Sequence[bytes]) -> dict[bytes, bytes]:
        marks = ", ".join("?" * len(rows))
        return dict(self._database.execute(f"SELECT name, key FROM keys WHERE name IN ({marks})", rows))  # noqa: S608

    def _row(self, name: Name) -> bytes:
        return hmac.digest(self._secret, _text(name), hashlib.sha256)


class Tokeniser:
    """Replaces the values of some fields of JSON messages by tokens.

    Args:
        keys: Keys of the values.
        fields: Fields to replace, wherever a message has them; all of them hold texts.
        attributes: Members of ``attributes`` to replace, likewise; a null stays.
    """

    def __init__(self, keys: TokenKeys, fields: Iterable[str] = (CARD_ID,), attributes: Iterable[str] = ()) -> None:
        self._keys, self._fields, self._attributes = keys, tuple(fields), tuple(attributes)

    @classmethod
    def from_settings(cls, settings: "Settings") -> Self:
        """Return the tokeniser of ``settings`` and of the personal texts that are declared; raises `KeyFileError`."""
        declared = active_declaration().fields
        personal = [name for name, field in declared.items() if field.personal and field.type == "text"]
        return cls(TokenKeys.from_settings(settings), settings.token_names, personal)

    def message(self, value: bytes | None) -> tuple[str, bytes]:
        """Return the token of a message's ``card_id``, which is the key of its record, and its JSON with tokens.

        Args:
            value: JSON of the message, in UTF-8; None for a record without a value.

        Raises:
            NotTokenised: It is no JSON object with texts in these fields.
        """
        (found,) = self.many([value])
        if isinstance(found, NotTokenised):
            raise found
        return found

    def token(self, field: str, value: str) -> str:
        """Return the token of a value.

        Args:
            field: Name of the field: equal values of two fields have different tokens.
            value: Value to replace.
        """
        name = (field, value)
        return _token(name, self._keys.keys([name])[name])

    def _names(self, value: bytes | None) -> dict[str, Name]:
        """Return the values to replace in a message, by field; `NotTokenised` as of `message`."""
        if value is None:
            raise NotTokenised("null_value", "The record has no value.")
        if len(value) > MAX_VALUE_BYTES:
            # The pipeline would refuse it, and its topics might not take it.
            raise NotTokenised("too_large", f"The record has more than {MAX_VALUE_BYTES} bytes.")
        try:
            value.decode()
            fields = _FIELDS.decode(value)
            names = {field: (field, _TEXT.decode(fields[field])) for field in self._fields if field in fields}
            attributes = self._members(fields)
            given = [name for name in self._attributes if attributes.get(name, _NULL) != _NULL]
            names |= {f"attributes.{name}": (f"attributes.{name}", _TEXT.decode(attributes[name])) for name in given}
        except UnicodeDecodeError as error:
            raise NotTokenised("not_utf8", "The record is not UTF-8.") from error
        except msgspec.ValidationError as error:
            raise NotTokenised("wrong_type", "The record is no object, or a field to tokenise is no text.") from error
        except (msgspec.DecodeError, RecursionError) as error:
            raise NotTokenised("not_json", "The record is not JSON.") from error
        if CARD_ID not in names:
            raise NotTokenised("missing_field", "The record has no card_id.")
        if not names[CARD_ID][1]:
            raise NotTokenised("invalid_value", "The record's card_id is empty.")
        return names

    def _replaced(self, value: bytes, keys: Mapping[Name, bytes], names: Mapping[str, Name]) -> tuple[str, bytes]:
        tokens = {field: _token(name, keys[name]) for field, name in names.items()}
        fields = _FIELDS.decode(value)
        attributes = self._members(fields)
        for field, token in tokens.items():
            parent, _, name = field.rpartition(".")
            (attributes if parent else fields)[name] = msgspec.Raw(b'"%b"' % token.encode())
        if attributes:
            fields["attributes"] = msgspec.Raw(msgspec.json.encode(attributes))
        return tokens[CARD_ID], msgspec.json.encode(fields)

    def _members(self, fields: Mapping[str, msgspec.Raw]) -> dict[str, msgspec.Raw]:
        """Return the attributes of a message, if any of them are to be replaced."""
        text = fields.get("attributes", _NULL) if self._attributes else _NULL
        return {} if text == _NULL else _FIELDS.decode(text)

    def many(self, values: Sequence[bytes | None]) -> list[tuple[str, bytes] | NotTokenised]:
        """Tokenise many messages with one look-up of their keys.

        Args:
            values: JSON of each message, in UTF-8; None for a record without a value.

        Returns:
            For each message token and JSON like `message`, or the error that `message` would raise.
        """
        asked: list[dict[str, Name] | NotTokenised] = []
        for value in values:
            try:
                asked.append(self._names(value))
            except NotTokenised as error:
                asked.append(error)
        keys = self._keys.keys(name for names in asked if isinstance(names, dict) for name in names.values())
        return [
            self._replaced(value or b"", keys, names) if isinstance(names, dict) else names
            for value, names in zip(values, asked, strict=True)
        ]


def _token(name: Name, key: bytes) -> str:
    digest = hmac.digest(key, _text(name), hashlib.sha256)[:_TOKEN_BYTES]
    return base64.b32encode(digest).decode().lower()


def _text(name: Name) -> bytes:
    field, value = name
    # A field's name holds no NUL, so that no two names have one text.
    return field.encode() + b"\0" + value.encode("utf-8", "surrogatepass")
