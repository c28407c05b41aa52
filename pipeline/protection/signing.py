"""Signatures of records that decide for everybody (topics ``models`` and ``control``), and the keys of snapshots.

A signature is the header ``signature``: the key's id, a colon, and Ed25519's signature in base64 of the topic's full
name and the record's value. Without keys in the settings nothing is signed and nothing is refused.
"""

import base64
import binascii
import hashlib
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from schemas.records import Headers, Output, Record
from schemas.topics import CONTROL, MODELS

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

    from pipeline.settings import Settings

SIGNATURE: Final = "signature"
SIGNED: Final = (MODELS, CONTROL)
_KEY_ID_DIGITS: Final = 16
_LEAST_KEY_BYTES: Final = 32


class KeyFileError(RuntimeError):
    """A key's file is missing, is none, or can be read by others; the text says what to do."""


class Signer:
    """Signs with one private key.

    Args:
        key: The key; None to sign nothing.
    """

    def __init__(self, key: "Ed25519PrivateKey | None") -> None:
        self._key = key
        self._key_id = "" if key is None else key_id(key.public_key())

    @classmethod
    def from_settings(cls, settings: "Settings") -> Self:
        """Return the signer of the settings.

        Raises:
            KeyFileError: The file cannot be used, or signatures are asked for and there is no key to sign with.
        """
        if settings.signing_key_file is None:
            if settings.trusted_keys:
                raise KeyFileError(
                    "FRAUD_PIPELINE_TRUSTED_KEYS has readers refuse what is not signed: set "
                    "FRAUD_PIPELINE_SIGNING_KEY_FILE too where something is to be written"
                )
            return cls(None)
        return cls(_private_key(settings.signing_key_file))

    @property
    def public_key(self) -> "Ed25519PublicKey | None":
        """The key that its signatures are checked with."""
        return None if self._key is None else self._key.public_key()

    def headers(self, output: Output, topic: str) -> Headers:
        """Return the headers of a record with its signature, where its topic is one of `SIGNED`.

        Args:
            output: The record.
            topic: Full name of its topic.
        """
        if self._key is None or output.topic not in SIGNED:
            return output.headers
        signature = base64.b64encode(self._key.sign(_signed_bytes(topic, output.value)))
        return (*output.headers, (SIGNATURE, self._key_id.encode() + b":" + signature))


class Trust:
    """Decides whether a record of `SIGNED` topics is believed.

    Args:
        keys: Public keys, any of which may have signed it. Without any, every record is believed.
        unsigned_below: Offset by the topic's full name; records below it need no signature.
    """

    def __init__(self, keys: "Iterable[Ed25519PublicKey]", unsigned_below: Mapping[str, int]) -> None:
        self._keys = {key_id(key): key for key in keys}
        self._unsigned_below = dict(unsigned_below)

    @classmethod
    def from_settings(cls, settings: "Settings") -> Self:
        """Return the trust of the settings, which takes in the key that they sign with.

        Raises:
            KeyFileError: A file cannot be used.
        """
        paths = [Path(name.strip()) for name in settings.trusted_keys.split(",") if name.strip()]
        own = None if settings.signing_key_file is None else Signer.from_settings(settings).public_key
        keys = [*map(_public_key, paths), *(() if own is None else (own,))]
        return cls(keys, {settings.topic(name): offset for name, offset in settings.unsigned_below.items()})

    def refusal(self, record: Record) -> str | None:
        """Return why a record is not believed; None where it is."""
        if not self._keys or record.offset < self._unsigned_below.get(record.topic, 0):
            return None
        found = next((content for name, content in record.headers if name == SIGNATURE), None)
        if found is None:
            return "it is not signed"
        signer, _, signature = found.partition(b":")
        key = self._keys.get(signer.decode("ascii", "replace"))
        if key is None:
            return "it is signed by a key that is not among FRAUD_PIPELINE_TRUSTED_KEYS"
        from cryptography.exceptions import InvalidSignature

        try:
            key.verify(base64.b64decode(signature, validate=True), _signed_bytes(record.topic, record.value))
        except (InvalidSignature, binascii.Error):
            return "its signature is wrong"
        return None


def key_id(key: "Ed25519PublicKey") -> str:
    """Return the id that signatures of a key bear."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:_KEY_ID_DIGITS]


def snapshot_keys(settings: "Settings") -> tuple[bytes, ...]:
    """Return the keys of snapshots: the first one signs, any of them is believed; none where none are set.

    Raises:
        KeyFileError: A file cannot be used.
    """
    return tuple(secret_of(Path(name.strip())) for name in settings.snapshot_keys.split(",") if name.strip())


def secret_of(path: Path) -> bytes:
    """Return a key of 32 bytes that is derived from a file's content, which may have any form.

    Raises:
        KeyFileError: The file cannot be used, or is too short to be a key.
    """
    content = _private_bytes(path).strip()
    if len(content) < _LEAST_KEY_BYTES:
        raise KeyFileError(
            f"{path} holds {len(content)} bytes, too few for a key: write one with `openssl rand -hex 32`"
        )
    return hashlib.sha256(content).digest()


def _signed_bytes(topic: str, value: bytes | None) -> bytes:
    return b"fraud-pipeline\0" + topic.encode() + b"\0" + (value or b"")


def _private_key(path: Path) -> "Ed25519PrivateKey":
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    content = _private_bytes(path)
    try:
        key = load_pem_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(
            f"{path} is no private Ed25519 key without a password: `openssl genpkey -algorithm ed25519` makes one"
        )
    return key


def _public_key(path: Path) -> "Ed25519PublicKey":
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    content = _read(path)
    if path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise KeyFileError(f"others may change {path}, and so choose whom to trust: chmod 644 it, and look at it first")
    try:
        key = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise KeyFileError(f"{path} is no public Ed25519 key: `openssl pkey -in KEY -pubout` writes a private key's")
    return key


def _private_bytes(path: Path) -> bytes:
    """Read a file that others may not read: of its owner alone, or of a group that an orchestrator gives it to."""
    content = _read(path)
    status = path.stat()
    others = 0o077 if status.st_uid == os.geteuid() else stat.S_IRWXO | stat.S_IWGRP
    if status.st_mode & others:
        raise KeyFileError(f"others may read or change {path}: chmod 600 it, and make a new key if others did")
    return content


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise KeyFileError(f"{path} cannot be read: {error.strerror or error}") from None
