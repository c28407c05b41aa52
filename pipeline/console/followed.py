"""Versions and what they have learned, as ``control``, ``models`` and ``examples`` report it."""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

import msgspec

from pipeline.kafka.cluster.errors import ClusterUnreachable
from pipeline.kafka.cluster.log_offsets import Waiting, readable_range
from pipeline.kafka.readers.follower import TopicFollower
from pipeline.kafka.records.internal import TrustedRecords, not_counted, readable
from pipeline.models.activation import RIVER
from pipeline.models.contents import VersionContents, sound_versions
from pipeline.models.version_history import VersionHistory
from pipeline.scoring.payload import VERSION_DIGITS
from pipeline.settings import Settings
from schemas.codec import timestamp_us
from schemas.messages import Activation, VersionReference
from schemas.records import Record
from schemas.times import US_PER_DAY
from schemas.topics import CONTROL, EXAMPLES, MODELS

MODELS_BEFORE: Final = 2_000
"""Records of ``models`` before a console's start that are read: online versions, each one's content included."""
EXAMPLES_BEFORE: Final = 20_000
"""The same of ``examples``."""
EXAMPLES_KEPT: Final = 100_000
RIVERS_KEPT: Final = 20_000
FIRST_READ: Final = 2**63 - 1
"""A stand-in for the time of the first example, until that is read."""


class Deadline:
    """A limit of waits for brokers that do not answer: called while something waits, it raises once that was too long.

    Args:
        bootstrap: Addresses of the brokers, for the error.
    """

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap, self._ends_s = bootstrap, 0.0
        self.ending = threading.Event()
        """Set once nobody waits any more."""

    def begin(self, seconds: float) -> None:
        """Give what follows some seconds."""
        self._ends_s = time.monotonic() + seconds

    def __call__(self) -> None:
        """Raise `ClusterUnreachable` at the end."""
        if self.ending.is_set() or time.monotonic() > self._ends_s:
            raise ClusterUnreachable(f"no broker answers at {self._bootstrap}: see whether it runs")


class LearnedExample(NamedTuple):
    """The newest example of a transaction."""

    offset: int
    label: str
    held: bool
    known_us: int


class _ExampleHead(msgspec.Struct, frozen=True, gc=False):
    transaction_id: str
    card_id: str
    label: str
    known_at: datetime
    held: bool = False


class _Metadata(msgspec.Struct, frozen=True):
    metadata: dict[str, Any] = {}


class TrainingData(NamedTuple):
    """The labels that a LightGBM version was trained on."""

    version: str
    as_of_us: int
    """Only what was known by then was used."""
    maturity_us: int
    """Transactions that were so old by then were trained on."""
    early: bool
    """True if younger ones with a report were, too."""

    def holds(self, event_us: int, known_us: int, label: str) -> bool:
        """Return whether the version was trained on a label that was known at a time."""
        is_mature = event_us <= self.as_of_us - self.maturity_us
        return known_us <= self.as_of_us and (is_mature or (self.early and label == "fraud"))


_decode_example: Final = msgspec.json.Decoder(_ExampleHead).decode
_decode_metadata: Final = msgspec.json.Decoder(_Metadata).decode


class FollowedVersions:
    """The active versions, and the examples that online versions have learned; used from one thread.

    ``control`` is read whole, of the others only what is new.
    """

    def __init__(self, bootstrap: str, settings: Settings) -> None:
        self._bootstrap, self._settings = bootstrap, settings
        self._trusted = TrustedRecords(settings, not_counted)
        self._contents = VersionContents(bootstrap, settings)
        self._followers: dict[str, TopicFollower] = {}
        self._before = {CONTROL: None, MODELS: MODELS_BEFORE, EXAMPLES: EXAMPLES_BEFORE}
        self._metadata: dict[str, dict[str, Any]] = {}
        self.history = VersionHistory()
        self.active: dict[str, VersionReference] = {}
        """The newest version that was activated, by name."""
        self.rivers = deque[tuple[int, str]](maxlen=RIVERS_KEPT)
        """Offset of ``examples`` that an online version has learned up to, and its name, oldest first."""
        self._examples = OrderedDict[tuple[str, str], LearnedExample]()
        self.examples_since_us = 0
        """Time before which labels became known whose examples are not looked at any more; 0: there are none."""

    def poll(self, timeout_s: float, waiting: Waiting = None) -> None:
        """Take in what has come; waits up to ``timeout_s`` for the first record of each topic.

        Args:
            timeout_s: Seconds.
            waiting: Called while no broker answers; may raise.
        """
        for topic, before in self._before.items():
            if topic.name not in self._followers:
                there = readable_range(self._bootstrap, self._settings, self._settings.topic(topic.name), 0, waiting)
                start = there.start if before is None else max(there.start, there.stop - before)
                follower = TopicFollower(self._bootstrap, self._settings, topic)
                self._followers[topic.name] = follower.start({0: start})
                if topic is EXAMPLES and start > there.start:
                    self.examples_since_us = FIRST_READ
        self._take_control(self._followers[CONTROL.name].poll(timeout_s))
        for _, version in sound_versions(self._followers[MODELS.name].poll(timeout_s), self._trusted):
            learned_to = version.version.rpartition("@")[2]
            if version.name == RIVER and learned_to.isdecimal():
                self.rivers.append((int(learned_to), version.version))
        self._take_examples(self._followers[EXAMPLES.name].poll(timeout_s))

    @property
    def caught_up(self) -> bool:
        """True once the end of every topic has been seen."""
        return bool(self._followers) and all(follower.caught_up for follower in self._followers.values())

    def close(self) -> None:
        """Stop following."""
        for follower in self._followers.values():
            follower.close()
        self._followers.clear()

    def versions(self) -> dict[str, str]:
        """Return the active version of each model and the policy, by name."""
        found = {name: reference.digest[:VERSION_DIGITS] for name, reference in self.active.items()}
        river = {RIVER: self.rivers[-1][1]} if self.rivers else {}
        return {name: version for name, version in (found | river).items() if name in ("lightgbm", RIVER, "policy")}

    def budget(self, waiting: Waiting = None) -> float | None:
        """Return the cases a day that the active policy was made for; None where it does not say."""
        budget = self._active_metadata("policy", waiting).get("alerts_per_day")
        return float(budget) if isinstance(budget, int | float) else None

    def training_data(self, waiting: Waiting = None) -> TrainingData | None:
        """Return the labels of the active LightGBM version; None where it was not trained on the cluster's."""
        metadata = self._active_metadata("lightgbm", waiting)
        as_of_us, labels = metadata.get("as_of_us"), metadata.get("labels")
        maturity_days = labels.get("maturity_days") if isinstance(labels, dict) else None
        if not isinstance(as_of_us, int) or not isinstance(maturity_days, int | float):
            return None
        version = self.active["lightgbm"].digest[:VERSION_DIGITS]
        return TrainingData(version, as_of_us, round(maturity_days * US_PER_DAY), "early" in metadata)

    def example(self, transaction_id: str, card_id: str) -> LearnedExample | None:
        """Return the newest example of a transaction; None where none has come."""
        return self._examples.get((transaction_id, card_id))

    def river_behind(self, offset: int) -> str | None:
        """Return the first online version that has learned the example at an offset; None while none has."""
        return next((version for learned_to, version in self.rivers if learned_to > offset), None)

    def _take_control(self, records: Sequence[Record]) -> None:
        for item in self.history.take(records, self._trusted):
            if isinstance(item, Activation):
                self.active |= {reference.name: reference for reference in item.versions}

    def _take_examples(self, records: Sequence[Record]) -> None:
        for record, example in readable(records, _decode_example, not_counted):
            key = example.transaction_id, example.card_id
            known_us = timestamp_us(example.known_at)
            if self.examples_since_us == FIRST_READ:
                self.examples_since_us = known_us
            self._examples[key] = LearnedExample(record.offset, example.label, example.held, known_us)
            self._examples.move_to_end(key)
        while len(self._examples) > EXAMPLES_KEPT:
            self.examples_since_us = self._examples.popitem(last=False)[1].known_us

    def _active_metadata(self, name: str, waiting: Waiting) -> dict[str, Any]:
        reference = self.active.get(name)
        if reference is None:
            return {}
        if reference.digest not in self._metadata:
            content = self._contents.find(reference, waiting)
            if content is None:
                return {}
            self._metadata[reference.digest] = _metadata_of(bytes(content.payload))
            while len(self._metadata) > len(self.active):
                del self._metadata[next(iter(self._metadata))]
        return self._metadata[reference.digest]


def _metadata_of(payload: bytes) -> dict[str, Any]:
    try:
        return _decode_metadata(payload).metadata
    except msgspec.MsgspecError:
        return {}
