"""Labels of a surge: the examples that the online model passed over, and their release.

A release writes the held examples behind all others once more, to be learned, in one transaction with a record of
``control``. The online model thus stays a function of ``examples`` alone.
"""

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

import msgspec

from pipeline.kafka.readers.topic_reader import read_topic
from pipeline.kafka.records.internal import not_counted, readable
from pipeline.kafka.writers.producer import TopicRecord
from pipeline.models.changes import ChangeAuthor
from pipeline.models.publish import ControlWriter
from pipeline.scoring.errors import ModelError
from pipeline.settings import Settings
from schemas.messages import Example, LabelRelease, RecordPosition
from schemas.records import Record
from schemas.topics import EXAMPLES

_decode: Final = msgspec.json.Decoder(Example).decode
_encode: Final = msgspec.json.Encoder().encode


class HeldExamples:
    """The held examples of ``examples`` that nothing has followed: no correction, and no release.

    Args:
        examples: Records of ``examples``, in order.
    """

    def __init__(self, examples: Iterable[Record]) -> None:
        self._held: dict[tuple[str, str], tuple[int, Example]] = {}
        for record, example in readable(examples, _decode, not_counted):
            name = (example.card_id, example.transaction_id)
            if example.held:
                self._held.pop(name, None)
                self._held[name] = (record.offset, example)
            else:
                self._held.pop(name, None)

    @classmethod
    def on(cls, bootstrap: str, settings: Settings) -> "HeldExamples":
        """Read a cluster's; raises `TopicError`."""
        return cls(read_topic(bootstrap, settings.topic(EXAMPLES.name), settings=settings))

    @property
    def counts(self) -> dict[str, int]:
        """Count the held labels by source."""
        return dict(sorted(Counter(example.label_source or "" for _, example in self._held.values()).items()))

    def from_source(self, source: str) -> list[tuple[int, Example]]:
        """Return those of a source with their offsets, in order."""
        return sorted(
            (item for item in self._held.values() if item[1].label_source == source), key=lambda item: item[0]
        )


def release(bootstrap: str, settings: Settings, source: str, author: ChangeAuthor) -> LabelRelease:
    """Release the held examples of a source: all of them, or none.

    Args:
        bootstrap: Addresses of brokers.
        settings: Give the topics' full names and the client's configuration.
        source: Source of the labels.
        author: Who releases them, and why.

    Raises:
        ModelError: Nothing of the source is held.
        DeliveryFailed: Nothing is released.
        KeyFileError: The record is to be signed, and the key cannot be used.
        TopicError: ``examples`` cannot be read.
    """
    writer = ControlWriter(bootstrap, settings)
    # Before reading: nobody else can release the same labels from now on.
    writer.fence()
    found = HeldExamples.on(bootstrap, settings)
    held = found.from_source(source)
    if not held:
        listed = ", ".join(f"{name} ({count})" for name, count in found.counts.items()) or "none"
        raise ModelError(f"nothing of source {source!r} is held; held are: {listed}")
    position = RecordPosition(topic=EXAMPLES.name, partition=0, offset=held[0][0], end=held[-1][0] + 1)
    item = LabelRelease(
        source=source,
        examples=len(held),
        position=position,
        by=author.by,
        reason=author.reason,
        released_at=datetime.now(UTC),
    )
    writer.control(
        item,
        [
            TopicRecord(
                settings.topic(EXAMPLES.name),
                example.card_id.encode(),
                _encode(msgspec.structs.replace(example, held=False)),
            )
            for _, example in held
        ],
    )
    return item
