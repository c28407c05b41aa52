"""Every version that was ever published on a cluster, by name."""

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import cached_property
from itertools import chain
from typing import Self

from pipeline.decision.policy import Policy
from pipeline.engine.scores.models import ModelSet
from pipeline.kafka.cluster.log_offsets import Waiting
from pipeline.kafka.readers.follower import TopicFollower
from pipeline.kafka.readers.topic_reader import read_topic
from pipeline.kafka.records.internal import TrustedRecords, not_counted
from pipeline.kafka.session.quarantine import QuarantinedRecords
from pipeline.models.activation import RIVER, Activations
from pipeline.models.contents import VersionContents
from pipeline.models.history import VersionHistory
from pipeline.scoring.errors import ModelError
from pipeline.scoring.river_factory import first_river
from pipeline.scoring.river_model import RiverModel
from pipeline.settings import Settings
from schemas.messages import Activation, ModelVersion, Quarantine, VersionReference
from schemas.records import Record
from schemas.topics import CONTROL


def model_set_without_river() -> ModelSet:
    """Return an empty model set for programs that look at LightGBM versions and policies alone."""
    return ModelSet(first_river, _no_river)


def _no_river(payload: bytes) -> RiverModel:
    raise ModelError(f"no online model is looked at here ({len(payload)} bytes)")


class PublishedVersions:
    """The versions on ``models``, and what the records of ``control`` say that were handed over; used from one thread.

    Args:
        settings: Give topics' full names.
        control: The first records of ``control``, in order.
        contents: Reads ``models``.
        model_set: A model set without versions.
        waiting: Called while no broker answers; may raise.
    """

    def __init__(
        self,
        settings: Settings,
        control: Iterable[Record],
        contents: VersionContents,
        model_set: ModelSet,
        waiting: Waiting = None,
    ) -> None:
        self.quarantined = QuarantinedRecords(settings)
        self._trusted = TrustedRecords(settings, not_counted)
        self.history = VersionHistory()
        self._contents, self._empty, self._model_set, self._waiting = contents, model_set, model_set, waiting
        self._references: list[VersionReference] = []
        self._activations = Activations(not_counted)
        self._applied = True
        self._scans: dict[str, tuple[Iterator[tuple[int, ModelVersion]], dict[str, bytes]]] = {}
        self.add(control)

    @classmethod
    def on(cls, bootstrap: str, settings: Settings, model_set: ModelSet) -> Self:
        """Read a cluster's; raises ``TopicError``, ``KafkaException``."""
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


class FollowedVersions(PublishedVersions):
    """Follows ``control`` for a program that sets policies.

    Args:
        bootstrap: Addresses of brokers.
        settings: Give the topics' full names and the client's configuration.
        waiting: Called while no broker answers; may raise.
    """

    def __init__(self, bootstrap: str, settings: Settings, waiting: Callable[[], None]) -> None:
        super().__init__(settings, (), VersionContents(bootstrap, settings), model_set_without_river(), waiting)
        self._follower, self._started = TopicFollower(bootstrap, settings, CONTROL), False

    def refresh(self) -> None:
        """Take in all that was committed before this call."""
        if not self._started:
            self._follower.start()
            self._started = True
        self.add(self._follower.read_committed(self._waiting or (lambda: None)))

    def look(self) -> None:
        """Take in what has come, without asking for more; behind `refresh`."""
        self.add(self._follower.poll(0))

    def close(self) -> None:
        """Stop following."""
        self._follower.close()

    def first_policy(self) -> Policy | None:
        """Return the policy that became active together with the LightGBM version; None if it cannot be read."""
        active = self.model_set.active
        if active is None:
            return None
        for activation in reversed(self.history.activations):
            named = {version.name: version for version in activation.versions}
            if {"lightgbm", "policy"} <= named.keys() and named["lightgbm"].digest == active.lightgbm.digest:
                content = self.content(named["policy"])
                return None if content is None else Policy.from_payload(bytes(content.payload))
        return None
