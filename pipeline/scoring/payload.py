"""The encoding of models, layers and policies: one JSON object, named by its digest. Never pickle."""

import hashlib
from typing import Annotated, Any, Final, TypeVar

import msgspec

from pipeline.scoring.errors import ModelError
from schemas.codec import MAX_NESTING, is_too_deep

VERSION_DIGITS: Final = 12
"""Hexadecimal digits of its payload's digest that name a version, so that equal contents are one version."""

MAX_METADATA_BYTES: Final = 64 * 1024
"""Largest metadata of a version or policy, as JSON."""
LARGEST_COEFFICIENT: Final = 1e6
"""Largest absolute value of a slope, an intercept or a weight: far from what could overflow a sum."""

Offset = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""An offset of a topic, of 64 bits as Kafka's."""

T = TypeVar("T", bound=msgspec.Struct)


def payload_digest(payload: bytes) -> str:
    """SHA-256 of a payload, hexadecimal."""
    return hashlib.sha256(payload).hexdigest()


def encode_payload(content: msgspec.Struct) -> bytes:
    """Encode as JSON; dictionaries in sorted order, so that equal contents give equal bytes."""
    return msgspec.json.encode(content, order="deterministic")


def decode_payload(payload: bytes, decoder: msgspec.json.Decoder[T], what: str, kind: str | None = None) -> T:
    """Decode a payload.

    Args:
        payload: Any bytes.
        decoder: One that its module has made: where several threads come upon a type for the first time, msgspec can
            crash.
        what: What the payload should be, for the error.
        kind: The ``kind`` that it must name; None: it need not name one.

    Raises:
        ModelError: The payload is not ``what``, or not JSON that every reader can read: UTF-8, in what msgspec skips
            too, and nested no deeper than `MAX_NESTING`.
    """
    try:
        payload.decode()
        if is_too_deep(payload):
            raise _unreadable(what, f"it is nested more than {MAX_NESTING} deep")
        content = decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _unreadable(what, str(error)) from error
    if kind is not None and (found := getattr(content, "kind", None)) != kind:
        raise ModelError(f"the payload is a {found!r}, not {what}; look at what was published")
    return content


def check_metadata(metadata: dict[str, Any]) -> None:
    """Check the size of a version's or policy's metadata, which every worker holds.

    Raises:
        ModelError: It is larger than `MAX_METADATA_BYTES`.
    """
    size_bytes = len(msgspec.json.encode(metadata))
    if size_bytes > MAX_METADATA_BYTES:
        raise ModelError(f"the metadata has {size_bytes} bytes; at most {MAX_METADATA_BYTES} are accepted: shorten it")


def _unreadable(what: str, why: str) -> ModelError:
    return ModelError(f"the payload is not {what}: {why}; publish or register that version again")


def payload_kind(payload: bytes) -> str:
    """The ``kind`` that a payload names."""
    return decode_payload(payload, _KIND, "a model of this pipeline").kind


class _Kind(msgspec.Struct, frozen=True):
    kind: str


_KIND: Final = msgspec.json.Decoder(_Kind)
