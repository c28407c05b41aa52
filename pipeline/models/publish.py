"""Publishing versions: their content on ``models`` first, then, on ``control``, the record that makes them active.

Who decides by what is on ``control`` must not overwrite what somebody else has decided meanwhile. All such writers use
one transactional id. `ControlWriter.fence` takes it; from then on no earlier holder can write. Who reads behind that
call, and then writes, knows that nobody came between.
"""

import os
import random
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, Self, TypeVar

from pipeline.decision.policy import Policy
from pipeline.decision.rules import RULES, RuleSet
from pipeline.engine.feedback.learn import model_record
from pipeline.kafka.cluster.log_offsets import log_ranges
from pipeline.kafka.session.quarantine import control_record
from pipeline.kafka.writers.producer import RecordProducer, TopicRecord, TransactionalProducer, WriterFenced
from pipeline.models.version_history import VersionHistory
from pipeline.protection.signing import Signer
from pipeline.scoring.lightgbm_model import LightGBMModel
from pipeline.scoring.payload import payload_digest
from pipeline.settings import Settings
from schemas.messages import Activation, Assessment, Control, VersionReference
from schemas.records import Output
from schemas.topics import CONTROL, MODELS

TRANSACTIONAL_ID: Final = "control"
"""The transactional id of all who decide by what ``control`` says."""
_MOST_FENCED: Final = 10
"""Writes in a row that others have come before; then somebody has to look."""
S = TypeVar("S")
T = TypeVar("T")


class VersionToPublish(NamedTuple):
    """A version to be published."""

    name: str
    """See `schemas.messages.ModelVersion`."""
    version: str
    payload: bytes
    """A JSON object."""

    @classmethod
    def from_models(cls, *versions: LightGBMModel | Policy | RuleSet) -> list[Self]:
        """Return LightGBM versions, policies and sets of rules as they are published."""
        names = {LightGBMModel: "lightgbm", Policy: "policy", RuleSet: RULES}
        return [cls(names[type(version)], version.version, version.to_payload()) for version in versions]


class ModelChange(NamedTuple):
    """The reasons of a change of versions for ``control``; fields as in `schemas.messages.Activation`."""

    step: str = "publish"
    by: str = ""
    reason: str = ""
    figures: dict[str, Any] = {}  # noqa: RUF012 -- never changed


_PUBLISHED: Final = ModelChange()


class ControlWriter:
    """Writes contents to ``models`` and records to ``control``; every record is written when a call returns.

    Raises:
        DeliveryFailed: By every method: a record was not written.
        KeyFileError: Records are to be signed, and the key cannot be used.
    """

    def __init__(self, bootstrap: str, settings: Settings) -> None:
        self._bootstrap, self._settings = bootstrap, settings
        self._signer = Signer.from_settings(settings)
        self._producer = RecordProducer(bootstrap, settings)
        self._holder: TransactionalProducer | None = None

    @property
    def key_id(self) -> str:
        """Id of the key that signs the records; empty where none does."""
        return self._signer.key_id

    def fence(self) -> TransactionalProducer:
        """Take the right to write on ``control`` away from all who have it; read ``control`` behind this call."""
        self._holder = TransactionalProducer(self._bootstrap, self._settings, self._settings.topic(TRANSACTIONAL_ID))
        return self._holder

    def undisturbed(self, decide: Callable[[], T], read: Callable[[], None] = lambda: None) -> T:
        """Read, decide and write, again if somebody else has written meanwhile.

        Between two attempts it rests for a random time, as long as they take at most: two programs that began at once
        would else take the right from each other for ever.

        Args:
            decide: Decides by what was read, writes if it wants to, and returns its result.
            read: Reads what ``control`` has by now, where ``decide`` does not read it itself.
        """
        fenced = 0
        while True:
            began_s = time.monotonic()
            self.fence()
            read()
            try:
                return decide()
            except WriterFenced:
                fenced += 1
                if fenced == _MOST_FENCED:
                    raise
                time.sleep(random.uniform(0.0, fenced * (time.monotonic() - began_s)))  # noqa: S311 (no secret)

    def contents(self, contents: Sequence[VersionToPublish]) -> list[VersionReference]:
        """Write contents and return references to them."""
        models, control = self._settings.topic(MODELS.name), self._settings.topic(CONTROL.name)
        # The content will lie at this offset or a little behind it. Where a topic is missing, nothing is written.
        offset = log_ranges(self._bootstrap, self._settings, [(models, 0), (control, 0)])[models, 0].stop
        now = datetime.now(UTC)
        for content in contents:
            self._write(model_record(*content, now), now)
        # Kafka orders nothing between topics: what a record of `control` names must be there before it.
        self._producer.flush()
        return [
            VersionReference(name=name, version=version, digest=payload_digest(payload), offset=offset)
            for name, version, payload in contents
        ]

    def records(self, outputs: Iterable[Output]) -> None:
        """Write records that an activation will name; they count nothing by themselves."""
        now = datetime.now(UTC)
        for output in outputs:
            self._write(output, now)
        self._producer.flush()

    def activate(self, references: Sequence[VersionReference], step: ModelChange) -> None:
        """Make versions active at once whose contents are on ``models``; each name once."""
        self.control(_activation(references, step))

    def assess(
        self, outcome: str, versions: Sequence[VersionReference], against: Sequence[VersionReference], step: ModelChange
    ) -> None:
        """Record a comparison of versions; nothing becomes active.

        Args:
            outcome: Outcome of the comparison, such as ``accepted`` or ``rejected``.
            versions: The versions that were assessed; their contents are on ``models``. Empty where there are none yet.
            against: The versions that were active at the time.
            step: Gives author, reason and figures; its ``step`` is not recorded.

        Raises:
            WriterFenced: Somebody else has taken the right to write since `fence`.
        """
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

    def control(self, item: Control, others: Sequence[TopicRecord] = ()) -> None:
        """Write a record of ``control``, and others in the same transaction.

        Raises:
            WriterFenced: Somebody else has taken the right to write since `fence`.
        """
        output = control_record(item)
        topic = self._settings.topic(output.topic.name)
        headers = self._signer.headers(output, topic)
        holder = self._holder or self.fence()
        holder.write([TopicRecord(topic, output.key, output.value or b"", headers=headers), *others], headers=[])

    def note(self, item: Control) -> None:
        """Write a record of ``control`` that takes nobody's place, whatever others write meanwhile."""
        self._write(control_record(item), datetime.now(UTC))
        self._producer.flush()

    def _write(self, output: Output, now: datetime) -> None:
        topic = self._settings.topic(output.topic.name)
        headers = list(self._signer.headers(output, topic))
        self._producer.produce(topic, output.key or b"", output.value or b"", round(now.timestamp() * 1_000), headers)


def _activation(references: Sequence[VersionReference], step: ModelChange) -> Activation:
    return Activation(versions=list(references), activated_at=datetime.now(UTC), **step._asdict())


def publish_active(
    bootstrap: str, settings: Settings, contents: Sequence[VersionToPublish], step: ModelChange = _PUBLISHED
) -> None:
    """Publish versions that take nobody's place, and make all of them active at once: rate tables, and first versions.

    Raises:
        DeliveryFailed: A record was not written. Nothing is active before the last one is.
    """
    writer = ControlWriter(bootstrap, settings)
    writer.note(_activation(writer.contents(contents), step))


def changed(
    read: Callable[[str, Settings, ControlWriter], S], bootstrap: str, settings: Settings, decide: Callable[[S], T]
) -> T:
    """Change what is active by what a cluster has by now; see `ControlWriter.undisturbed`.

    Args:
        read: Reads the cluster, and returns what makes changes with the writer, such as `VersionChanges.on`.
        bootstrap: Address of the cluster.
        settings: Settings of the cluster.
        decide: Makes the change, and returns its result. It may be called again with what was read anew.

    Raises:
        WriterFenced: Others have written meanwhile, again and again; nothing became active.
    """
    writer = ControlWriter(bootstrap, settings)
    return writer.undisturbed(lambda: decide(read(bootstrap, settings, writer)))


class ServiceEnded(Exception):
    """The service has to end; the text says why."""


class ServiceStopped(Exception):
    """The service was asked to stop."""


class SoleProcess:
    """This process of a service, as the figures of its records name it.

    Args:
        service: The command's name.
    """

    def __init__(self, service: str) -> None:
        self._service, self._identity = service, f"{socket.gethostname()}-{os.getpid()}"
        self._before: str | None = None
        """The last writer that may be there."""
        self._started = False

    @property
    def figures(self) -> dict[str, Any]:
        """Figures that each record of this process bears."""
        return {self._service: self._identity}

    def refuse_other(self, history: VersionHistory) -> None:
        """Raise `ServiceEnded` where another process of the service has written since the first call."""
        last = history.last_writer(self._service)
        if not self._started or last == self._identity:
            self._before, self._started = last, True
        elif last != self._before:
            raise ServiceEnded(
                f"another {self._service} ({last or 'unnamed'}) has written since: this one ends. Run one "
                f"{self._service} a cluster"
            )
