"""How models, layers and policies become bytes: one JSON object, named by its digest. Never pickle."""

import hashlib
from typing import Final, TypeVar

import msgspec

from pipeline.scoring.errors import ModelError

VERSION_DIGITS: Final = 12
"""Hexadecimal digits of a digest that a version shows."""

T = TypeVar("T", bound=msgspec.Struct)


def payload_digest(payload: bytes) -> str:
    """SHA-256 of a payload, hexadecimal."""
    return hashlib.sha256(payload).hexdigest()


def version_of(payload: bytes) -> str:
    """The version of a payload: the beginning of its digest, so that equal contents are one version."""
    return payload_digest(payload)[:VERSION_DIGITS]


def encode_payload(content: msgspec.Struct) -> bytes:
    """One JSON object; dictionaries in sorted order, so that equal contents give equal bytes."""
    return msgspec.json.encode(content, order="deterministic")


def decode_payload(payload: bytes, decoder: msgspec.json.Decoder[T], what: str) -> T:
    """Decode a payload; raises `ModelError` naming ``what`` when it is not one.

    A decoder that its module has made: where several threads come upon a type for the first time, msgspec can crash.
    """
    try:
        return decoder.decode(payload)
    except msgspec.MsgspecError as error:
        raise ModelError(f"the payload is not {what}: {error}; publish or register that version again") from error


def payload_kind(payload: bytes) -> str:
    """The ``kind`` that a payload names."""
    return decode_payload(payload, _KIND, "a model of this pipeline").kind


class _Kind(msgspec.Struct, frozen=True):
    kind: str


_KIND: Final = msgspec.json.Decoder(_Kind)
