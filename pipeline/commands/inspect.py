"""``fraud-pipeline inspect``: show one record, and the rows of a block."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from typing import Final

import click
import msgspec

from pipeline.broker.running import find_cluster
from pipeline.engine.encoding.blocks import PROFILED_LAYOUT, BlockError, Layout, parse_block
from pipeline.engine.scores.block_messages import read_messages
from pipeline.engine.scores.decision_records import read_feature_messages
from pipeline.engine.scores.feature_blocks import LAYOUT as FEATURES_LAYOUT
from pipeline.kafka.cluster.clients import admin_client
from pipeline.kafka.cluster.log_offsets import partition_numbers
from pipeline.kafka.readers.topic_reader import read_batches
from pipeline.observability.terminal import printable_json
from pipeline.settings import Settings
from schemas.errors import UNREADABLE
from schemas.messages import Message
from schemas.records import Record
from schemas.topics import DECISION_FEATURES, PROFILED

_FORMS: Final[dict[str, tuple[Layout, Callable[[bytes], Sequence[Message]]]]] = {
    PROFILED.name: (PROFILED_LAYOUT, read_messages),
    DECISION_FEATURES.name: (FEATURES_LAYOUT, read_feature_messages),
}
_encode = msgspec.json.Encoder(decimal_format="number").encode


def find_record(bootstrap: str, settings: Settings, topic: str, partition: int, offset: int) -> Record:
    """Return the committed record at a position (topic without prefix).

    Raises:
        click.ClickException: There is none.
        TopicError: The topic is missing, or cannot be read.
    """
    name = settings.topic(topic)
    numbers = partition_numbers(admin_client(bootstrap, settings=settings), name)
    if partition not in numbers:
        raise click.ClickException(f"Topic {name} has partitions 0 to {max(numbers)}, and no partition {partition}.")
    reading = read_batches(bootstrap, name, settings=settings, partitions=[partition], start={partition: offset})
    with closing(reading) as batches:
        for records in batches:
            if records[0].offset == offset:
                return records[0]
            break
    raise click.ClickException(
        f"Offset {offset} of topic {name} partition {partition} holds no committed record: it is a marker of a Kafka "
        "transaction, was deleted, or does not exist yet."
    )


def shown(record: Record, topic: str, row: int | None) -> Iterator[bytes]:
    """Yield a record as lines of JSON: of a block its header and its rows, or one row; any other value as it is.

    Args:
        record: The record.
        topic: Its topic without prefix; says whether it is a block.
        row: Number of the one row that is wanted; None: all of them.

    Raises:
        click.ClickException: It has no such row, or it is neither a block nor JSON.
    """
    value = record.value or b""
    if topic in _FORMS:
        try:
            yield from _block(record, value, row, *_FORMS[topic])
        except BlockError as error:
            raise click.ClickException(f"The record cannot be shown as a block: {error}.") from error
        return
    if row is not None:
        raise click.ClickException(f"Records of topic {topic} have no rows: leave ROW out.")
    try:
        msgspec.json.decode(value)
    except UNREADABLE as error:
        raise click.ClickException(
            f"The value is not JSON ({error}): `fraud-pipeline export` keeps its bytes."
        ) from error
    yield value


def _block(
    record: Record, value: bytes, row: int | None, layout: Layout, read: Callable[[bytes], Sequence[Message]]
) -> Iterator[bytes]:
    block, messages = parse_block(value, layout), read(value)
    if row is not None and row >= len(messages):
        raise click.ClickException(f"The block has rows 0 to {len(messages) - 1}, and no row {row}.")
    if row is None:
        yield _encode(
            {
                "rows": block.rows,
                **({"transactions": len(block.features)} if layout.kinds else {}),
                "kernel": block.kernel,
                "bytes": len(value),
                "written_at": datetime.fromtimestamp(record.timestamp_ms / 1_000, UTC),
                "sources": block.sources.text(block.names),
            }
        )
    for number, message in enumerate(messages):
        if row is None or number == row:
            yield b'{"row":%d,' % number + _encode(message)[1:]


@click.command()
@click.argument("topic", metavar="TOPIC")
@click.argument("partition", type=click.IntRange(min=0))
@click.argument("offset", type=click.IntRange(min=0))
@click.argument("row", type=click.IntRange(min=0), required=False)
def command(*, topic: str, partition: int, offset: int, row: int | None) -> None:
    """Show the record at OFFSET of PARTITION of TOPIC (without prefix) as JSON.

    A block of `profiled` or `features` is shown by its header and its rows, one a line, or by ROW alone.
    """
    settings = Settings()
    names = [known.name for known in settings.topics]
    if topic not in names:
        raise click.BadParameter(f"{topic!r} is not one of {', '.join(names)}.", param_hint="TOPIC")
    record = find_record(find_cluster(settings), settings, topic, partition, offset)
    for line in shown(record, topic, row):
        click.echo(printable_json(line.decode()))
