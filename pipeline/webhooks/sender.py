"""One request of a webhook: a JSON body, signed as Standard Webhooks define it (standardwebhooks.com)."""

import base64
import binascii
import hashlib
import hmac
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final, NamedTuple

from pipeline.protection.signing import KeyFileError, private_bytes

TIMEOUT_S: Final = 10.0
_PREFIX: Final = "whsec_"
_LEAST_SECRET_BYTES: Final = 24
_PASSING: Final = frozenset({408, 425, 429})
"""Statuses below 500 that pass by themselves."""


class Outcome(NamedTuple):
    """The answer to a request."""

    delivered: bool
    permanent: bool
    """True where the same request would be refused again."""
    text: str


class Sender:
    """Sends events to one address, and follows no redirection.

    Args:
        url: Address of the receiver.
        secret: Key of the signatures.
        clock: Returns seconds since 1970.
    """

    def __init__(self, url: str, secret: bytes, clock: Callable[[], float] = time.time) -> None:
        self._url, self._secret, self._clock = url, secret, clock
        self._opener = urllib.request.build_opener(_NoRedirection)

    def send(self, event_id: str, body: bytes) -> Outcome:
        """Post an event once; its id stays the same however often it is sent."""
        timestamp = str(int(self._clock()))
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "fraud-pipeline",
            "webhook-id": event_id,
            "webhook-timestamp": timestamp,
            "webhook-signature": signature(self._secret, event_id, timestamp, body),
        }
        request = urllib.request.Request(self._url, body, headers, method="POST")  # noqa: S310 -- http or https
        try:
            with self._opener.open(request, timeout=TIMEOUT_S) as response:
                return Outcome(True, False, str(response.status))
        except urllib.error.HTTPError as error:
            with error:
                return Outcome(False, error.code < 500 and error.code not in _PASSING, f"status {error.code}")
        except (OSError, HTTPException) as error:
            return Outcome(False, False, str(getattr(error, "reason", None) or error) or type(error).__name__)


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Follow none: it would become a GET, or go to another host."""


def signature(secret: bytes, event_id: str, timestamp: str, body: bytes) -> str:
    """Return the header ``webhook-signature``.

    >>> signature(b"0" * 24, "1", "2", b"{}")
    'v1,SF1XZG2SmVi+GLX4zcPbZgL/U5ltfNkjsnY3Hji51o0='
    """
    signed = b".".join((event_id.encode(), timestamp.encode(), body))
    return f"v1,{base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()}"


def read_secret(path: Path) -> bytes:
    """Return the secret of a file: ``whsec_`` and base64, as Standard Webhooks write it.

    Raises:
        KeyFileError: The file cannot be used.
    """
    text = private_bytes(path).strip().decode("ascii", "replace")
    try:
        secret = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        secret = b""
    if not text.startswith(_PREFIX) or len(secret) < _LEAST_SECRET_BYTES:
        raise KeyFileError(
            f"{path} holds no secret of a webhook: write one with `echo {_PREFIX}$(openssl rand -base64 32)`"
        )
    return secret
