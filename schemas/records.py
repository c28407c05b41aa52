"""Records as the pipeline reads and writes them: bytes with a place in a log, and bytes on their way to a topic.

Structs, because they are made for every record, several times faster than named tuples.
"""

from typing import Final

import msgspec

from schemas.topics import Topic

LATEST_STAMP_MS: Final = 2**49
"""Arrival times beyond it, or before 1970, which only a producer's own clock can give, count as this one, or as 1970.

In microseconds it has 18 digits, and fits into 64 bits.
"""

Headers = tuple[tuple[str, bytes | None], ...]


class Output(msgspec.Struct, frozen=True, gc=False):
    """A record to be written; ``topic`` is the declaration, the adapter adds the prefix."""

    topic: Topic
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    partition: int | None = None
    """The partition to write to; None: the one that the key belongs to."""


class Record(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A record that was read; ``timestamp_ms`` is when it arrived (or what a replay says)."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    skipped_rows: tuple[int, ...] = ()
    """Rows of a block that are quarantined: whoever reads it reads the others."""

    @property
    def arrived_us(self) -> int:
        """Arrival time of the record, in microseconds since 1970."""
        return min(max(self.timestamp_ms, 0), LATEST_STAMP_MS) * 1_000

    @property
    def other_bytes(self) -> int:
        """Bytes of key and headers."""
        size = len(self.key or b"")
        if not self.headers:
            return size
        return size + sum(len(name.encode()) + len(content or b"") for name, content in self.headers)
