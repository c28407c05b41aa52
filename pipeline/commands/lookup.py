"""Search of topics for one transaction or card, without decoding what cannot be meant."""

import math
import re
import time
from collections.abc import Iterable, Iterator
from typing import Final, TypeVar

import click
import msgspec

from pipeline.kafka.readers.topic_reader import read_topic
from pipeline.settings import Settings
from schemas.errors import UNREADABLE
from schemas.messages import Alert, Decision, Label
from schemas.records import Record
from schemas.topics import Topic

SILENT_S: Final = 2.0
"""Time for which a search says nothing."""
_SAFE: Final = re.compile(rb"[A-Za-z0-9 ._:@#|-]+")
"""Characters that every JSON encoder writes as they are."""

M = TypeVar("M", bound=msgspec.Struct)
Found = TypeVar("Found", Alert, Decision, Label)


def named(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Return an argument or option.

    Args:
        context: Not used.
        parameter: Named by the error.
        value: The value; None where it is not given.

    Raises:
        BadParameter: The value is empty.
    """
    del context
    if value == "":
        raise click.BadParameter("it is empty; write a name", param=parameter)
    return value


def announced(records: Iterable[Record], topic: str, silent_s: float = SILENT_S) -> Iterator[Record]:
    """Yield ``records`` of ``topic``; say once on the standard error that it is searched, after ``silent_s``."""
    say_s = time.monotonic() + silent_s
    for record in records:
        if time.monotonic() >= say_s:
            click.echo(f"Searching {topic} ...", err=True)
            say_s = math.inf
        yield record


def decoded(records: Iterable[Record], identifier: str, kind: type[M]) -> Iterator[M]:
    """Yield the messages of a kind whose bytes may hold an identifier.

    A record is decoded only if it holds the longest part of the identifier that every encoder writes alike. One that
    does not decode is passed over: the pipeline refuses it too, and its dead letter says why.

    Args:
        records: The records; their order stays.
        identifier: Identifier of a transaction or card. Messages that do not name it may come too.
        kind: Type of the messages.
    """
    needle = max(_SAFE.findall(identifier.encode("utf-8", "surrogatepass")), key=len, default=b"")
    decode = msgspec.json.Decoder(kind).decode
    for record in records:
        if record.value is not None and needle in record.value:
            try:
                yield decode(record.value)
            except UNREADABLE:
                continue


def searched(bootstrap: str, settings: Settings, topic: Topic) -> Iterator[Record]:
    """Read a topic, and say so where that takes long.

    Args:
        topic: The topic; read from its beginning to its end of now.
    """
    name = settings.topic(topic.name)
    return announced(read_topic(bootstrap, name, settings=settings), name)


def find(
    bootstrap: str, settings: Settings, topics: Iterable[Topic], identifier: str, kind: type[Found]
) -> list[Found]:
    """Return the messages on topics that name a transaction or card.

    Args:
        topics: The topics, read one after the other.
        identifier: Identifier of a transaction or card.
        kind: Type of the messages.

    Returns:
        The messages, topic by topic, in order within a partition.

    Raises:
        TopicError: A topic is missing, or cannot be read.
    """
    return [
        message
        for topic in topics
        for message in decoded(searched(bootstrap, settings, topic), identifier, kind)
        if identifier in (message.transaction_id, message.card_id)
    ]


def find_labels(bootstrap: str, settings: Settings, identifier: str) -> list[Label]:
    """Return the labels that name a transaction or card, by their time; raises as `find`."""
    found = find(bootstrap, settings, settings.topics_of_labels, identifier, Label)
    return sorted(found, key=lambda label: label.labelled_at)
