"""Signatures of records that decide for everybody, and the keys of snapshots.

The topics of these records are ``models``, ``control`` and ``lists``.

A signature is the header ``signature``: the key's id, Ed25519's signature in base64 and the deployment's name, with
colons between them. It is of that name, the topic's full name and the record's value. Without keys in the settings
nothing is signed and nothing is refused.
"""

import base64
import binascii
import hashlib
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from schemas.records import Headers, Output, Record
from schemas.topics import CONTROL, LISTS, MODELS

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

    from pipeline.settings import Settings

SIGNATURE: Final = "signature"
SIGNED: Final = (MODELS, CONTROL, LISTS)
_KEY_ID_DIGITS: Final = 16
_LEAST_KEY_BYTES: Final = 32


class KeyFileError(RuntimeError):
    """A key's file is missing, is none, or can be read by others; the text says what to do."""


class Signer:
    """Signs with one private key.

    Args:
        key: The key; None to sign nothing.
        deployment: Name of the deployment.
    """

    def __init__(self, key: "Ed25519PrivateKey | None", deployment: str) -> None:
        self._key, self._deployment = key, deployment
        self.key_id = "" if key is None else key_id(key.public_key())
        """Id of the key; empty without one."""

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
            return cls(None, settings.deployment)
        return cls(_private_key(settings.signing_key_file), settings.deployment)

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
        name = self._deployment.encode()
        signature = base64.b64encode(self._key.sign(_signed_bytes(name, topic, output.value)))
        return (*output.headers, (SIGNATURE, b":".join((self.key_id.encode(), signature, name))))


class Trust:
    """Decides whether a record of `SIGNED` topics is believed.

    Args:
        keys: Public keys, any of which may have signed it. Without any, every record is believed.
        deployment: Name of the deployment that it must be signed for.
        unsigned_below: Offset by the topic's full name; records below it need no signature.
        unnamed_below: Likewise; signatures of records below it may be those of before, which name no deployment.
    """

    def __init__(
        self,
        keys: "Iterable[Ed25519PublicKey]" = (),
        deployment: str = "",
        unsigned_below: Mapping[str, int] | None = None,
        unnamed_below: Mapping[str, int] | None = None,
    ) -> None:
        self._keys, self._deployment = {key_id(key): key for key in keys}, deployment
        self._unsigned_below, self._unnamed_below = dict(unsigned_below or {}), dict(unnamed_below or {})

    @classmethod
    def from_settings(cls, settings: "Settings") -> Self:
        """Return the trust of the settings, which takes in the key that they sign with.

        Raises:
            KeyFileError: A file cannot be used.
        """
        paths = [Path(name.strip()) for name in settings.trusted_keys.split(",") if name.strip()]
        own = None if settings.signing_key_file is None else Signer.from_settings(settings).public_key
        keys = [*map(_public_key, paths), *(() if own is None else (own,))]
        unsigned, unnamed = (
            {settings.topic(name): offset for name, offset in below.items()}
            for below in (settings.unsigned_below, settings.unnamed_below)
        )
        return cls(keys, settings.deployment, unsigned, unnamed)

    def refusal(self, record: Record) -> str | None:
        """Return why a record is not believed; None where it is."""
        if not self._needs_signature(record):
            return None
        found = _signature(record)
        if found is None:
            return "it is not signed"
        key = self._keys.get(found.key_id)
        if key is None:
            return "it is signed by a key that is not among FRAUD_PIPELINE_TRUSTED_KEYS"
        from cryptography.exceptions import InvalidSignature

        try:
            signed = _signed_bytes(found.deployment, record.topic, record.value)
            key.verify(base64.b64decode(found.signature, validate=True), signed)
        except (InvalidSignature, binascii.Error):
            return "its signature is wrong"
        if found.deployment is None:
            is_earlier = record.offset < self._unnamed_below.get(record.topic, 0)
            return None if is_earlier else "its signature binds no deployment's name, as those of earlier releases"
        name = found.deployment.decode("ascii", "replace")
        # Shown only behind a signature that is right: what a name says is then none of a forger's.
        return None if name == self._deployment else f"it is signed for deployment {name!r}, not {self._deployment!r}"

    def signer(self, record: Record) -> str | None:
        """Return the id of the key that has signed a record which is believed; None where no signature was needed."""
        found = _signature(record) if self._needs_signature(record) else None
        return None if found is None else found.key_id

    def _needs_signature(self, record: Record) -> bool:
        return bool(self._keys) and record.offset >= self._unsigned_below.get(record.topic, 0)


class _Signature(NamedTuple):
    """The parts of the header."""

    key_id: str
    signature: bytes
    deployment: bytes | None
    """Name of the deployment; None in signatures of earlier releases."""


def _signature(record: Record) -> _Signature | None:
    found = next((content for name, content in record.headers if name == SIGNATURE), None)
    if found is None:
        return None
    key, _, rest = found.partition(b":")
    signature, colon, deployment = rest.partition(b":")
    return _Signature(key.decode("ascii", "replace"), signature, deployment if colon else None)


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
    content = private_bytes(path).strip()
    if len(content) < _LEAST_KEY_BYTES:
        raise KeyFileError(
            f"{path} holds {len(content)} bytes, too few for a key: write one with `openssl rand -hex 32`"
        )
    return hashlib.sha256(content).digest()


def _signed_bytes(deployment: bytes | None, topic: str, value: bytes | None) -> bytes:
    """Return what is signed; for no deployment, what earlier releases signed."""
    scheme = [b"fraud-pipeline"] if deployment is None else [b"fraud-pipeline/2", deployment]
    return b"\0".join((*scheme, topic.encode(), value or b""))


def _private_key(path: Path) -> "Ed25519PrivateKey":
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    content = private_bytes(path)
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


def private_bytes(path: Path) -> bytes:
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
