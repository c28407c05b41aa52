"""Explanation of a score: the versions of a decision, the parts of its score, and the score computed anew."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from itertools import chain, islice
from typing import Any, Final, Generic, TypeVar

import msgspec
import numpy as np

from pipeline.console.followed import Deadline
from pipeline.console.shares import parts_of, share_rows
from pipeline.console.views import Explanation
from pipeline.decision.policy import Policy
from pipeline.decision.rules import NO_RULES, RULES, RuleSet
from pipeline.engine.scores.active_models import ActiveModels
from pipeline.features.catalogue import FEATURES, KERNEL_VERSION
from pipeline.features.feature_set import is_comparable
from pipeline.kafka.cluster.errors import ClusterUnreachable, FailedRequest, TopicError
from pipeline.kafka.cluster.log_offsets import starts_at
from pipeline.kafka.readers.replay_reader import NewRecords
from pipeline.kafka.records.internal import not_counted
from pipeline.models.activation import RIVER
from pipeline.models.contents import VersionContents
from pipeline.models.library import PublishedVersions
from pipeline.models.registry import Registry
from pipeline.observability.error_text import explained
from pipeline.scoring.errors import ModelError
from pipeline.scoring.kinds import BESIDE, LIGHTGBM, Scorer, Unpublished
from pipeline.scoring.lightgbm_model import LightGBMModel
from pipeline.scoring.river_factory import first_river, load_river
from pipeline.settings import Settings
from schemas.messages import Decision
from schemas.topics import CONTROL, MODELS

READ_S: Final = 5.0
"""Longest time for which a page waits for brokers that do not answer."""
AGAIN_S: Final = 30.0
"""Time after which a version that could not be read is looked for again."""
VERSIONS_KEPT: Final = 64
"""Loaded versions that are kept, besides those of River."""
DECISIONS_KEPT: Final = 256
"""Sets of versions that are kept."""
RIVERS_KEPT: Final = 1_000
"""Contents of River versions that are kept; each has a few kilobytes."""
BEHIND_MS: Final = 60_000
"""Largest difference of clocks: a River version that decided was published at most so long after its decision."""
RIVERS_BEHIND, RIVERS_BEFORE = 1_000, 20_000
"""Records of ``models`` behind and before that time among which a River version is looked for."""
_UNREADABLE: Final = (ModelError, TopicError, ClusterUnreachable, FailedRequest, OSError)
K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """The values that were used last, at most ``most``."""

    def __init__(self, most: int) -> None:
        self._most, self._values = most, OrderedDict[K, V]()

    def get(self, key: K) -> V | None:
        """Return a value, which is the newest then; None without one."""
        if key in self._values:
            self._values.move_to_end(key)
        return self._values.get(key)

    def put(self, key: K, value: V) -> V:
        """Keep a value in the place of the oldest."""
        self._values[key] = value
        self._values.move_to_end(key)
        if len(self._values) > self._most:
            self._values.popitem(last=False)
        return value


class DecisionVersions:
    """The models that decisions name, read from ``models`` and kept; used from one thread at a time."""

    def __init__(self, bootstrap: str, settings: Settings) -> None:
        self._bootstrap, self._settings = bootstrap, settings
        self._deadline = Deadline(bootstrap)
        self._contents = VersionContents(bootstrap, settings)
        self._control = NewRecords(bootstrap, settings, settings.topic(CONTROL.name), not_counted)
        self._published = PublishedVersions(settings, (), self._contents, waiting=self._deadline)
        self._registry = Registry(settings.registry_path)
        self._loaded = Recent[tuple[str, str], Any](VERSIONS_KEPT)
        self._rivers = Recent[str, bytes](RIVERS_KEPT)

    def models(self, decision: Decision) -> ActiveModels:
        """Return the models of a decision.

        Raises:
            ModelError: A version cannot be found or used.
            ClusterUnreachable: No broker answers.
        """
        self._deadline.begin(READ_S)
        versions = decision.versions
        others = dict[str, Scorer]()
        for kind in BESIDE:
            version = getattr(versions, kind.name)
            if kind.load is not None and version != Unpublished().version:
                others[kind.name] = self._load(kind.load, kind.name, version)
        lightgbm = self._load(LightGBMModel.from_payload, LIGHTGBM.name, versions.lightgbm)
        policy = self._load(Policy.from_payload, "policy", versions.policy)
        rules = self._load(RuleSet.from_payload, RULES, versions.rules) if versions.rules else NO_RULES
        return ActiveModels(lightgbm, self._river(decision), policy, others, rules)

    def _load(self, load: Callable[[bytes], V], name: str, version: str) -> V:
        found: V | None = self._loaded.get((name, version))
        if found is not None:
            return found
        payload = self._published.payload(name, version)
        if payload is None:
            self._published.add(list(self._control.read(self._deadline)))
            payload = self._published.payload(name, version)
        if payload is None:
            raise ModelError(f"{name} version {version} cannot be read on topic {self._settings.topic(MODELS.name)}")
        loaded = load(payload)
        self._loaded.put((name, version), loaded)
        return loaded

    def _river(self, decision: Decision) -> Scorer:
        version, classifier = decision.versions.river, self._settings.river_classifier
        first = first_river(classifier)
        if first.version == version:
            return first
        if version.endswith("@0"):
            return Unpublished(version)  # of another declaration: nothing was learned
        payload = self._rivers.get(version) or self._read_river(decision)
        model = load_river(payload, classifier, self._registry.read_file)
        if model.version != version:
            raise ModelError(f"topic models has {model.version} under the name {version}")
        return model

    def _read_river(self, decision: Decision) -> bytes:
        """Look for a River version where it was published: shortly before it decided."""
        version, topic = decision.versions.river, self._settings.topic(MODELS.name)
        there = self._contents.readable(self._deadline)
        at_ms = round(decision.decided_at.timestamp() * 1_000) + BEHIND_MS
        end = min(starts_at(self._bootstrap, topic, at_ms, settings=self._settings)[0], there.stop)
        before = self._contents.newest_first(max(there.start, end - RIVERS_BEFORE), end, self._deadline)
        behind = self._contents.between(end, min(end + RIVERS_BEHIND, there.stop), self._deadline)
        for _, content in chain(before, islice(behind, RIVERS_BEHIND)):
            if content.name == RIVER:
                self._rivers.put(content.version, bytes(content.payload))
                if content.version == version:
                    return bytes(content.payload)
        raise ModelError(f"the online model {version} cannot be found on topic {topic}")


class Explainer:
    """Explains scores; its methods may be called from any thread.

    What is read and compiled for a set of versions is kept, so that the next decision of the same takes milliseconds.
    """

    def __init__(self, bootstrap: str, settings: Settings) -> None:
        self._versions = DecisionVersions(bootstrap, settings)
        self._kept = Recent[str, ActiveModels](DECISIONS_KEPT)
        self._failed = Recent[str, tuple[float, str]](DECISIONS_KEPT)
        self._lock, self._reading = threading.Lock(), threading.Lock()

    def explain(self, decision: Decision) -> Explanation:
        """Return the parts of a decision's score, or a sentence that says why they cannot be had.

        Args:
            decision: With its features.
        """
        kernel, features = decision.versions.kernel, decision.features
        if not features:
            return _unexplained(decision, "The decision bears no features, so that nothing can be computed anew.")
        if not is_comparable(kernel):
            return _unexplained(
                decision,
                f"Its features were computed by kernel {kernel}, and mean something else to this program (kernel "
                f"{KERNEL_VERSION}): explain it with the release of that time.",
            )
        models = self._models(decision)
        if isinstance(models, str):
            return _unexplained(decision, models)
        return _explained(models, decision, features)

    def _models(self, decision: Decision) -> ActiveModels | str:
        """Return the models of a decision, or why they cannot be had."""
        key = "/".join(msgspec.structs.astuple(decision.versions))
        with self._lock:
            found = self._kept.get(key)
        if found is not None:
            return found
        with self._reading:
            failed = self._failed.get(key)
            if failed is not None and time.monotonic() < failed[0]:
                return failed[1]
            try:
                models = self._versions.models(decision)
            except _UNREADABLE as error:
                text = f"Its versions cannot be read: {explained(error) or error}."
                return self._failed.put(key, (time.monotonic() + AGAIN_S, text))[1]
            with self._lock:
                return self._kept.put(key, models)


def _explained(models: ActiveModels, decision: Decision, features: dict[str, float | None]) -> Explanation:
    values = [features.get(name) for name in FEATURES]
    row = np.array([[np.nan if value is None else value for value in values]], np.float64)
    parts = parts_of(models, row)
    score = float(parts.score[0])
    note = None
    if decision.versions.kernel != KERNEL_VERSION:
        missing = ", ".join([name for name in FEATURES if name not in features][:5])
        note = f"It was decided under another declaration of features (kernel {decision.versions.kernel}" + (
            f"), which lacks {missing}." if missing else ")."
        )
    return Explanation(
        share_rows(parts, 0, row[0]),
        float(parts.logit[0]),
        decision.score,
        score,
        score == decision.score,
        _named(decision),
        decision.threshold,
        note,
    )


def _unexplained(decision: Decision, note: str) -> Explanation:
    score = min(max(decision.score, 1e-17), 1.0 - 1e-16)
    logit = float(np.log(score) - np.log1p(-score))
    return Explanation((), logit, decision.score, None, None, _named(decision), decision.threshold, note)


def _named(decision: Decision) -> dict[str, str]:
    return {name: str(version) for name, version in msgspec.structs.asdict(decision.versions).items()}
