"""Labels of a surge: the examples that the online model passed over, and their release.

A release writes the held examples behind all others once more, to be learned, in one transaction with a record of
``control``. The online model thus stays a function of ``examples`` alone.
"""

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
from schemas.topics import EXAMPLES

_decode: Final = msgspec.json.Decoder(Example).decode
_encode: Final = msgspec.json.Encoder().encode


def held_examples(bootstrap: str, settings: Settings) -> dict[str, list[tuple[int, Example]]]:
    """Return the held examples that nothing has followed, no correction and no release, by source.

    They stand in the order of the log, with their offsets. Raises `TopicError`.
    """
    held: dict[tuple[str, str], tuple[int, Example]] = {}
    records = read_topic(bootstrap, settings.topic(EXAMPLES.name), settings=settings)
    for record, example in readable(records, _decode, not_counted):
        name = (example.card_id, example.transaction_id)
        held.pop(name, None)
        if example.held:
            held[name] = (record.offset, example)
    sources = sorted({example.label_source or "" for _, example in held.values()})
    return {source: [item for item in held.values() if (item[1].label_source or "") == source] for source in sources}


def release(bootstrap: str, settings: Settings, source: str, author: ChangeAuthor) -> LabelRelease:
    """Release the held examples of a source: all of them, or none.

    Args:
        source: Source of the labels, as examples name it; empty for examples without one.
        author: Who releases them, and why.

    Returns:
        The record of ``control`` that was written.

    Raises:
        ModelError: Nothing of the source is held.
        DeliveryFailed: Nothing is released.
        KeyFileError: The record is to be signed, and the key cannot be used.
        TopicError: ``examples`` cannot be read.
    """
    writer = ControlWriter(bootstrap, settings)
    return writer.undisturbed(lambda: _release(bootstrap, settings, writer, source, author))


def _release(
    bootstrap: str, settings: Settings, writer: ControlWriter, source: str, author: ChangeAuthor
) -> LabelRelease:
    found = held_examples(bootstrap, settings)
    held = found.get(source)
    if not held:
        listed = ", ".join(f"{name} ({len(of_source)})" for name, of_source in found.items()) or "none"
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
