"""The content of versions on ``models``, found by digest (``docs/invariants.md`` 15)."""

from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import Final

import msgspec

from pipeline.kafka.cluster.log_offsets import Waiting, readable_range
from pipeline.kafka.readers.replay_reader import RangeReader
from pipeline.kafka.records.internal import OnRefused, TrustedRecords, not_counted, refuse
from pipeline.scoring.payload import payload_digest
from pipeline.settings import Settings
from schemas.messages import ModelVersion, VersionReference
from schemas.records import Record
from schemas.topics import MODELS

SEARCH_RECORDS: Final = 10_000
"""Records behind a reference's offset among which its content is looked for."""
_FIRST_TAIL: Final = 200
_decode: Final = msgspec.json.Decoder(ModelVersion).decode


def sound_versions(records: Iterable[Record], trusted: TrustedRecords) -> Iterator[tuple[Record, ModelVersion]]:
    """Yield the records of ``models`` whose content has the digest that they name; the others are refused."""
    for record, version in trusted.readable(records, _decode):
        if payload_digest(bytes(version.payload)) == version.digest:
            yield record, version
        else:
            refuse(
                record,
                f"its content does not have the digest {version.digest[:12]!r} that it names",
                trusted.on_refused,
            )


class VersionContents:
    """Reads ``models``; used from one thread at a time.

    Args:
        on_refused: Counts records that are no versions.
    """

    def __init__(self, bootstrap: str, settings: Settings, on_refused: OnRefused = not_counted) -> None:
        self._bootstrap, self._settings = bootstrap, settings
        self._trusted = TrustedRecords(settings, on_refused)
        self._topic = settings.topic(MODELS.name)

    def readable(self, waiting: Waiting = None) -> range:
        """Return the offsets that can be read now; ``waiting`` is called while no broker answers, and may raise."""
        return readable_range(self._bootstrap, self._settings, self._topic, 0, waiting)

    def find(self, reference: VersionReference, waiting: Waiting = None) -> ModelVersion | None:
        """Return the first record with the digest that ``reference`` names; None where it cannot be read (yet)."""
        there = self.readable(waiting)
        start = max(reference.offset, there.start)
        for _, version in self.between(start, min(start + SEARCH_RECORDS, there.stop), waiting):
            if version.digest == reference.digest and version.name == reference.name:
                return version
        return None

    def between(self, start: int, end: int, waiting: Waiting = None) -> Iterator[tuple[int, ModelVersion]]:
        """Yield offset and content of the sound versions between two offsets, oldest first.

        Args:
            start: First offset; nothing is read if it is not below ``end``.
            end: Offset behind the last.
            waiting: Called while no broker answers; may raise.
        """
        if start >= end:
            return
        with closing(
            RangeReader(
                self._bootstrap, self._settings, self._topic, 0, start, waiting, on_refused=self._trusted.on_refused
            )
        ) as reader:
            while records := reader.read_to(end):
                yield from ((record.offset, version) for record, version in sound_versions(records, self._trusted))

    def newest_first(self, start: int, end: int, waiting: Waiting = None) -> Iterator[tuple[int, ModelVersion]]:
        """Yield what `between` yields, newest first.

        Reads in growing pieces from the end, since the newest is mostly what is looked for: the topic grows for ever.
        """
        piece = _FIRST_TAIL
        while start < end:
            first = max(start, end - piece)
            yield from reversed(list(self.between(first, end, waiting)))
            end, piece = first, min(piece * 4, SEARCH_RECORDS)
