"""A fixed transactional writer on a raw socket: the floor that commits of the pipeline are measured against.

A measure, and not a producer. It knows one broker, has no fencing by generation, no TLS, no compression, no reconnects,
and ends at any error that does not pass. A transaction under KIP-890 is two waits: one Produce request for all
partitions with the offsets right behind it, and the end. It does not share code with the pipeline's writers, so that it
stays the same when those change.
"""

import socket
import struct
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from aiokafka.record.default_records import DefaultRecordBatchBuilder

from schemas.records import Output

PRODUCE, FIND_COORDINATOR, INIT_PRODUCER_ID = (0, 12), (10, 4), (22, 5)
END_TXN, TXN_OFFSET_COMMIT = (26, 5), (28, 5)
"""Keys and versions of requests."""
LATER: Final = frozenset({3, 6, 14, 15, 16, 51})
"""Errors that pass: no leader or coordinator yet, or markers of the transaction before that are still being written."""
RETRY_S, TIMEOUT_MS = 0.002, 8_000
CLIENT, MOST_BYTES = b"floor", 1 << 28
NO_TAGS: Final = b"\0"


class RawError(RuntimeError):
    """The broker refused a request."""


def varint(number: int) -> bytes:
    """Encode an unsigned number.

    >>> varint(300).hex()
    'ac02'
    """
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


def text(value: bytes | str | None) -> bytes:
    """Encode a compact string, or compact bytes."""
    if value is None:
        return b"\0"
    data = value.encode() if isinstance(value, str) else value
    return varint(len(data) + 1) + data


def array(items: Sequence[bytes]) -> bytes:
    """Encode a compact array of encoded items."""
    return varint(len(items) + 1) + b"".join(items)


class Answer:
    """A cursor over the fields of an answer."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, form: str) -> tuple[Any, ...]:
        """Read numbers of fixed width, as `struct` has their form."""
        found = struct.unpack_from(">" + form, self._data, self._at)
        self._at += struct.calcsize(">" + form)
        return found

    def length(self) -> int:
        """Read an unsigned number."""
        shift = found = 0
        while True:
            byte = self._data[self._at]
            self._at += 1
            found |= (byte & 0x7F) << shift
            if byte < 0x80:
                return found
            shift += 7

    def skip_text(self) -> None:
        """Pass over a compact string."""
        size = self.length()
        self._at += max(size - 1, 0)

    def skip_tags(self) -> None:
        """Pass over tagged fields."""
        for _ in range(self.length()):
            self.length()
            size = self.length()
            self._at += size

    def error_of_partitions(self, rest: Callable[["Answer"], None] = lambda _: None) -> int:
        """Read topics and partitions; return the last error. ``rest`` reads what follows a partition's error."""
        found = 0
        for _ in range(self.length() - 1):
            self.skip_text()
            for _ in range(self.length() - 1):
                _, code = self.take("ih")
                found = code or found
                rest(self)
                self.skip_tags()
            self.skip_tags()
        return found

    def skip_produced(self) -> None:
        """Pass over what a Produce answer has of a partition beside its error."""
        self.take("qqq")
        for _ in range(self.length() - 1):
            self.take("i")
            self.skip_text()
            self.skip_tags()
        self.skip_text()


class RawTransactions:
    """Transactions of one transactional id, on a connection of its own."""

    def __init__(self, bootstrap: str, name: str, group: str) -> None:
        host, _, port = bootstrap.rpartition(":")
        self._socket = socket.create_connection((host, int(port)))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._answers = self._socket.makefile("rb", 1 << 16)
        self._name, self._group, self._sent = name, group, 0
        # The broker makes the topics of its coordinators when it is first asked for one.
        self._ask(FIND_COORDINATOR, struct.pack(">b", 1) + array([text(name)]) + NO_TAGS)
        first = text(name) + struct.pack(">iqh", TIMEOUT_MS, -1, -1) + NO_TAGS
        self._producer = self._ask_until_done(INIT_PRODUCER_ID, first)

    def close(self) -> None:
        """Close the connection."""
        self._answers.close()
        self._socket.close()

    def _send(self, kind: tuple[int, int], body: bytes) -> None:
        self._sent += 1
        head = struct.pack(">hhih", *kind, self._sent, len(CLIENT)) + CLIENT + NO_TAGS
        self._socket.sendall(struct.pack(">i", len(head) + len(body)) + head + body)

    def _receive(self) -> Answer:
        (size,) = struct.unpack(">i", self._answers.read(4))
        answer = Answer(self._answers.read(size))
        answer.take("i")
        answer.skip_tags()
        return answer

    def _ask(self, kind: tuple[int, int], body: bytes) -> Answer:
        self._send(kind, body)
        return self._receive()

    def _ask_until_done(self, kind: tuple[int, int], body: bytes) -> tuple[int, int]:
        """Make a request whose answer is the id and epoch to go on with."""
        while True:
            _, code, number, epoch = self._ask(kind, body).take("ihqh")
            if code == 0:
                return number, epoch
            _wait(code)

    def commit(self, records: Mapping[str, Mapping[int, Sequence[Output]]], offsets: Iterable[Any]) -> None:
        """Write records by topic and partition number, and offsets, and commit."""
        id_and_epoch = struct.pack(">qh", *self._producer)
        topics = [
            text(topic) + array([struct.pack(">i", n) + text(self._batch(rows)) + NO_TAGS for n, rows in parts.items()])
            for topic, parts in records.items()
        ]
        produce = text(self._name) + struct.pack(">hi", -1, TIMEOUT_MS) + array([it + NO_TAGS for it in topics])
        lines: dict[str, list[bytes]] = {}
        for at in offsets:
            line = struct.pack(">iqi", at.partition, at.offset, -1) + text(at.metadata) + NO_TAGS
            lines.setdefault(at.topic, []).append(line)
        nobody = struct.pack(">i", -1) + text("") + text(None)
        commit = text(self._name) + text(self._group) + id_and_epoch + nobody
        commit += array([text(topic) + array(found) + NO_TAGS for topic, found in lines.items()])
        while True:
            # One connection, so that the broker takes them in this order.
            self._send(PRODUCE, produce + NO_TAGS)
            self._send(TXN_OFFSET_COMMIT, commit + NO_TAGS)
            code, answer = self._receive().error_of_partitions(Answer.skip_produced), self._receive()
            answer.take("i")
            if not (code := code or answer.error_of_partitions()):
                break
            _wait(code)
        # The id has another epoch from here on, so that sequences begin at 0 with each transaction.
        self._producer = self._ask_until_done(END_TXN, text(self._name) + id_and_epoch + b"\1" + NO_TAGS)

    def _batch(self, rows: Sequence[Output]) -> bytes:
        builder = DefaultRecordBatchBuilder(2, 0, 1, *self._producer, 0, MOST_BYTES)
        now_ms = time.time_ns() // 1_000_000
        for index, row in enumerate(rows):
            builder.append(index, now_ms, row.key, row.value, [])
        return bytes(builder.build())


def _wait(code: int) -> None:
    if code not in LATER:
        raise RawError(f"the broker refused a request with error {code}")
    time.sleep(RETRY_S)
