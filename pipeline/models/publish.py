"""Publishing versions: their content on ``models`` first, then, on ``control``, the record that makes them active."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from pipeline.engine.learn import model_record
from pipeline.kafka.producer import RecordProducer
from pipeline.kafka.quarantine import control_record
from pipeline.kafka.ranges import log_ranges
from pipeline.scoring.payload import payload_digest
from pipeline.settings import Settings
from schemas.messages import Activation, VersionReference
from schemas.records import Output
from schemas.topics import MODELS


class Content(NamedTuple):
    """A version to be published."""

    name: str
    """As in `schemas.messages.ModelVersion`."""
    version: str
    payload: bytes
    """One JSON object."""


def publish_active(bootstrap: str, settings: Settings, contents: Sequence[Content]) -> None:
    """Publish versions and make all of them active at once.

    Args:
        bootstrap: Addresses of brokers.
        settings: Give the topics' full names and the client's configuration.
        contents: The versions; each name once.

    Raises:
        DeliveryFailed: A record was not written. Nothing is active before the last one is.
    """
    now = datetime.now(UTC)
    models = settings.topic(MODELS.name)
    # The content will lie at this offset or a little behind it.
    offset = log_ranges(bootstrap, settings, [models], 0, lambda: None)[models].stop
    references = [
        VersionReference(name=name, version=version, digest=payload_digest(payload), offset=offset)
        for name, version, payload in contents
    ]
    with RecordProducer(bootstrap, settings) as producer:

        def write(output: Output) -> None:
            topic = settings.topic(output.topic.name)
            producer.produce(topic, output.key or b"", output.value or b"", round(now.timestamp() * 1_000))

        for content in contents:
            write(model_record(*content, now))
        # Kafka orders nothing between topics: what the activation names must be there before it.
        producer.flush()
        write(control_record(Activation(versions=references, activated_at=now)))
