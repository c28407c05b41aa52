"""Every version that was ever published on a cluster, by name."""

from collections.abc import Iterable, Iterator
from datetime import datetime
from functools import cached_property
from itertools import chain
from typing import Self

from pipeline.engine.scores.active_models import ModelSet
from pipeline.kafka.cluster.log_offsets import Waiting
from pipeline.kafka.readers.topic_reader import read_topic
from pipeline.kafka.records.internal import TrustedRecords, not_counted
from pipeline.kafka.session.quarantine import QuarantinedRecords
from pipeline.models.activation import RIVER, Activations
from pipeline.models.contents import VersionContents
from pipeline.models.version_history import VersionHistory
from pipeline.scoring.errors import ModelError
from pipeline.scoring.kinds import Scorer
from pipeline.scoring.river_factory import first_river
from pipeline.settings import Settings
from schemas.messages import Activation, ModelVersion, Quarantine, VersionReference
from schemas.records import Record
from schemas.topics import CONTROL


def _no_river(payload: bytes) -> Scorer:
    raise ModelError(f"no online model is looked at here ({len(payload)} bytes)")


class PublishedVersions:
    """The versions on ``models``, and what the records of ``control`` say that were handed over; used from one thread.

    Args:
        control: The first records of ``control``, in order.
        contents: Reads ``models``.
        model_set: A model set without versions; by default one for LightGBM versions and policies alone.
        waiting: Called while no broker answers; may raise.
    """

    def __init__(
        self,
        settings: Settings,
        control: Iterable[Record],
        contents: VersionContents,
        model_set: ModelSet | None = None,
        waiting: Waiting = None,
    ) -> None:
        self.quarantined = QuarantinedRecords(settings)
        self._trusted = TrustedRecords(settings, not_counted)
        self.history = VersionHistory()
        self._empty = self._model_set = model_set or ModelSet(first_river, _no_river)
        self._contents, self._waiting = contents, waiting
        self._references: list[VersionReference] = []
        self._activations = Activations(not_counted)
        self._applied = True
        self._scans: dict[str, tuple[Iterator[tuple[int, ModelVersion]], dict[str, bytes]]] = {}
        self.add(control)

    @classmethod
    def on(cls, bootstrap: str, settings: Settings, model_set: ModelSet | None = None) -> Self:
        """Read a cluster's.

        Args:
            model_set: A model set without versions. None: one for LightGBM versions and policies alone.

        Raises:
            TopicError: A topic is missing.
            KafkaException: The brokers report an error that does not pass.
        """
        # At once: a topic that is missing is reported before anything waits for the other one.
        control = list(read_topic(bootstrap, settings.topic(CONTROL.name), settings=settings))
        contents = VersionContents(bootstrap, settings)
        contents.readable()
        return cls(settings, control, contents, model_set)

    def add(self, control: Iterable[Record]) -> None:
        """Take in records of ``control`` that follow all others."""
        for item in self.history.take(control, self._trusted):
            if isinstance(item, Activation):
                self._activations.add(item)
                self._references += item.versions
            elif isinstance(item, Quarantine):
                self.quarantined.add(item)
        # A content that could not be read may have come since.
        self._applied = not self._activations.awaited

    @property
    def model_set(self) -> ModelSet:
        """The active versions, as every worker has them, without an online model."""
        if not self._applied:
            self._model_set, self._applied = self._activations.apply(self._model_set, self.content), True
        return self._model_set

    @cached_property
    def _end(self) -> int:
        """Offset of ``models`` up to which River versions are looked for."""
        return self._contents.readable(self._waiting).stop

    def model_set_at(self, moment: datetime) -> ModelSet:
        """Return the versions that were active at ``moment``, by the times of the activations' records."""
        activations = Activations(not_counted)
        for activation in self.history.until(moment).activations:
            activations.add(activation)
        return activations.apply(self._empty, self.content)

    def content(self, reference: VersionReference) -> ModelVersion | None:
        """Return the content that a reference names; None where it cannot be read."""
        return self._contents.find(reference, self._waiting)

    def payload(self, name: str, version: str) -> bytes | None:
        """Return the content of a LightGBM or policy version that was activated once; None without one."""
        for reference in self._references:
            # A version is the beginning of its content's digest, whatever the reference calls it.
            if reference.name == name and reference.digest.startswith(version):
                content = self.content(reference)
                if content is not None:
                    return bytes(content.payload)
        return None

    def river(self, version: str, lightgbm: str) -> bytes | None:
        """Return the content of a River version that scored beside a LightGBM version; None without one.

        ``models`` is read from where the LightGBM version was published, and no further than it must be: versions are
        asked for in about the order in which they were published. Then what lies before is searched backwards, where
        the version lies that was active when the LightGBM version came.
        """
        if lightgbm not in self._scans:
            first = self._first_offset(lightgbm)
            earlier = self._contents.newest_first(self._contents.readable().start, first)
            self._scans[lightgbm] = (chain(self._contents.between(first, self._end), earlier), {})
        scan, passed = self._scans[lightgbm]
        while version not in passed and (found := next(scan, None)) is not None:
            if found[1].name == RIVER:
                passed.setdefault(found[1].version, bytes(found[1].payload))
        return passed.get(version)

    def rivers_newest_first(self) -> Iterator[bytes]:
        """Yield the contents of the River versions, newest first."""
        for _, version in self._contents.newest_first(self._contents.readable().start, self._end):
            if version.name == RIVER:
                yield bytes(version.payload)

    def _first_offset(self, lightgbm: str) -> int:
        """Return the lowest offset at which a LightGBM version may lie."""
        digests = [at.digest for at in self._references if at.name == "lightgbm" and at.digest.startswith(lightgbm)]
        offsets = map(self._activations.first_offset, digests)
        return max(min(offsets, default=0), self._contents.readable().start)
