"""Publishing versions: their content on ``models`` first, then, on ``control``, the record that makes them active."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from pipeline.engine.learn import model_record
from pipeline.kafka.producer import RecordProducer
from pipeline.kafka.quarantine import control_record
from pipeline.kafka.ranges import log_ranges
from pipeline.protection.signing import Signer
from pipeline.scoring.payload import payload_digest
from pipeline.settings import Settings
from schemas.messages import Activation, Assessment, Control, VersionReference
from schemas.records import Output
from schemas.topics import MODELS


class VersionToPublish(NamedTuple):
    """A version to be published."""

    name: str
    """See `schemas.messages.ModelVersion`."""
    version: str
    payload: bytes
    """A JSON object."""


class ModelChange(NamedTuple):
    """The reasons of a change of versions for ``control``; fields as in `schemas.messages.Activation`."""

    step: str = "publish"
    by: str = ""
    reason: str = ""
    figures: dict[str, Any] = {}  # noqa: RUF012 -- never changed


class ControlWriter:
    """Writes contents to ``models`` and records to ``control``; every record is written when a call returns.

    Args:
        bootstrap: Addresses of brokers.
        settings: Give the topics' full names and the client's configuration.

    Raises:
        DeliveryFailed: By every method: a record was not written.
        KeyFileError: Records are to be signed, and the key cannot be used.
    """

    def __init__(self, bootstrap: str, settings: Settings) -> None:
        self._bootstrap, self._settings = bootstrap, settings
        self._signer = Signer.from_settings(settings)
        self._producer = RecordProducer(bootstrap, settings)

    def contents(self, contents: Sequence[VersionToPublish]) -> list[VersionReference]:
        """Write contents and return references to them."""
        models = self._settings.topic(MODELS.name)
        # The content will lie at this offset or a little behind it.
        offset = log_ranges(self._bootstrap, self._settings, [models], 0, lambda: None)[models].stop
        now = datetime.now(UTC)
        for content in contents:
            self._write(model_record(*content, now), now)
        # Kafka orders nothing between topics: what a record of `control` names must be there before it.
        self._producer.flush()
        return [
            VersionReference(name=name, version=version, digest=payload_digest(payload), offset=offset)
            for name, version, payload in contents
        ]

    def activate(self, references: Sequence[VersionReference], step: ModelChange) -> None:
        """Make versions active at once whose contents are on ``models``; each name once."""
        now = datetime.now(UTC)
        self.control(Activation(versions=list(references), activated_at=now, **step._asdict()))

    def assess(
        self, outcome: str, versions: Sequence[VersionReference], against: Sequence[VersionReference], step: ModelChange
    ) -> None:
        """Record a comparison of versions; nothing becomes active."""
        self.control(
            Assessment(
                versions=list(versions),
                against=list(against),
                outcome=outcome,
                by=step.by,
                reason=step.reason,
                figures=step.figures,
                assessed_at=datetime.now(UTC),
            )
        )

    def control(self, item: Control) -> None:
        """Write a record of ``control``."""
        self._write(control_record(item), datetime.now(UTC))
        self._producer.flush()

    def _write(self, output: Output, now: datetime) -> None:
        topic = self._settings.topic(output.topic.name)
        headers = list(self._signer.headers(output, topic))
        self._producer.produce(topic, output.key or b"", output.value or b"", round(now.timestamp() * 1_000), headers)


def publish_active(
    bootstrap: str, settings: Settings, contents: Sequence[VersionToPublish], step: ModelChange | None = None
) -> None:
    """Publish versions and make all of them active at once.

    Args:
        bootstrap: Addresses of brokers.
        settings: Give the topics' full names and the client's configuration.
        contents: The versions; each name once.
        step: Why; by default nothing is said.

    Raises:
        DeliveryFailed: A record was not written. Nothing is active before the last one is.
    """
    writer = ControlWriter(bootstrap, settings)
    writer.activate(writer.contents(contents), step or ModelChange())
