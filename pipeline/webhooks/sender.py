"""One request of a webhook: a JSON body, signed as Standard Webhooks define it (standardwebhooks.com)."""

import asyncio
import base64
import binascii
import hashlib
import hmac
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote

from aiohttp import ClientError, ClientSession, ClientTimeout
from yarl import URL

from pipeline.protection.signing import KeyFileError, private_bytes

TIMEOUT_S: Final = 10.0
"""Longest time of a whole request, however often a byte of the answer comes."""
_STOP_POLL_S: Final = 0.1
_PREFIX: Final = "whsec_"
_LEAST_SECRET_BYTES: Final = 24
_PASSING: Final = frozenset({407, 408, 425, 429})
"""Statuses below 500 that pass by themselves, or are a proxy's."""


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
        stop: Ends a request that waits.
        clock: Returns seconds since 1970.
    """

    def __init__(self, url: str, secret: bytes, stop: threading.Event, clock: Callable[[], float] = time.time) -> None:
        # As it was given: a receiver may have signed it.
        self._url, self._secret, self._stop, self._clock = URL(url, encoded=True), secret, stop, clock

    def send(self, event_id: str, body: bytes) -> Outcome:
        """Post an event once; its id stays the same however often it is sent."""
        event_id, timestamp = quote(event_id), str(int(self._clock()))  # a rule's code is any text
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "fraud-pipeline",
            "webhook-id": event_id,
            "webhook-timestamp": timestamp,
            "webhook-signature": signature(self._secret, event_id, timestamp, body),
        }
        return asyncio.run(self._outcome(headers, body))

    async def _outcome(self, headers: Mapping[str, str], body: bytes) -> Outcome:
        answer = asyncio.create_task(self._status(headers, body))
        while not answer.done():
            if self._stop.is_set():
                return Outcome(False, False, "the service ends")
            await asyncio.wait([answer], timeout=_STOP_POLL_S)
        try:
            status = answer.result()
        except TimeoutError:
            return Outcome(False, False, f"no answer within {TIMEOUT_S:g} s")
        except OSError as error:
            return Outcome(False, False, str(error) or type(error).__name__)
        except (ClientError, ValueError) as error:
            # Its text may have an address, which may be a secret, or what was written in place of an answer.
            return Outcome(False, False, type(error).__name__)
        if 200 <= status < 300:
            return Outcome(True, False, str(status))
        return Outcome(False, status < 500 and status not in _PASSING, f"status {status}")

    async def _status(self, headers: Mapping[str, str], body: bytes) -> int:
        async with (
            ClientSession(timeout=ClientTimeout(total=TIMEOUT_S), trust_env=True) as session,
            session.post(self._url, data=body, headers=headers, allow_redirects=False) as response,
        ):
            return response.status


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
