"""Models by version: of the registry, of the topic ``models``, and River versions folded from ``examples`` again."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, TypeVar

import msgspec

from pipeline.decision.policy import Policy
from pipeline.engine.models import ActiveModels
from pipeline.kafka.clients import read_topic
from pipeline.kafka.internal import not_counted, readable
from pipeline.kafka.quarantine import QuarantinedRecords, decode_control
from pipeline.rates import RatesError
from pipeline.registry import LIGHTGBM, POLICY, Registry, RegistryError
from pipeline.scoring.errors import ModelError
from pipeline.scoring.lightgbm_model import LightGBMModel
from pipeline.scoring.payload import VERSION_DIGITS, payload_digest
from pipeline.scoring.river_factory import Unlearned, first_river, load_river, new_learner, resume_learner
from pipeline.scoring.river_layer import LayerConfig
from pipeline.scoring.river_model import RiverLearner, RiverModel
from pipeline.settings import Settings
from schemas.messages import CardRules, Example, ModelVersion, Quarantine, RatesVersion, Versions
from schemas.money import RateTable, load
from schemas.records import Record
from schemas.topics import CONTROL, EXAMPLES, MODELS

RIVER: Final = "river"
ACTIVE: Final = "active"
_CONTROL: Final = b"control/"
_RATES: Final = b"control/rates/"
_decode_model = msgspec.json.Decoder(ModelVersion).decode
K = TypeVar("K")
V = TypeVar("V")
_decode_rates = msgspec.json.Decoder(RatesVersion).decode
_decode_example = msgspec.json.Decoder(Example).decode


class ModelLibrary:
    """Versions of models, wherever they are kept; each is read once."""

    def __init__(self, settings: Settings, bootstrap: str | None = None) -> None:
        """``bootstrap`` names the cluster whose ``models`` and ``examples`` are looked at too."""
        self._settings, self._bootstrap = settings, bootstrap
        self._registry = Registry(settings.registry_path)
        self._lightgbm: dict[str, LightGBMModel] = {}
        self._policies: dict[str, Policy] = {}
        self._rivers: dict[tuple[str, str], RiverModel] = {}

    def lightgbm(self, version: str) -> LightGBMModel:
        """A LightGBM version, or the one in force (`ACTIVE`). Raises `RegistryError`, `ModelError`."""
        version = self._version(LIGHTGBM, version)
        return _once(self._lightgbm, version, lambda: LightGBMModel.from_payload(self._payload(LIGHTGBM, version)))

    def policy(self, version: str) -> Policy:
        """A policy, or the one in force. Raises `RegistryError`, `ModelError`."""
        version = self._version(POLICY, version)
        return _once(self._policies, version, lambda: Policy.from_payload(self._payload(POLICY, version)))

    def policy_for(self, lightgbm: str) -> Policy:
        """The newest policy whose threshold was chosen for a LightGBM version, else the one in force."""
        known = [self.policy(entry.version) for entry in self._registry.entries(POLICY)]
        if not known or self._is_active(POLICY):
            # Before the newest, if it fits.
            known.append(self.policy(ACTIVE))
        return next((one for one in reversed(known) if one.lightgbm_version == lightgbm), known[-1])

    def policy_in_force(self) -> Policy | None:
        """The policy in force, if there is one. Raises `RegistryError`, `ModelError`."""
        return self.policy(ACTIVE) if self._is_active(POLICY) else None

    def untaught_river(self, lightgbm: str) -> RiverModel:
        """The online model before its first lesson on a LightGBM version, which changes nothing."""
        return first_river(lightgbm, self._settings.river_classifier)

    def learner(self, models: ActiveModels) -> tuple[RiverLearner, int]:
        """A learner of one's own that goes on from the online model of ``models``, and how many examples that had."""
        classifier = self._settings.river_classifier
        if isinstance(models.river, Unlearned):
            return new_learner(models.lightgbm.version, classifier), 0
        payload = models.river.to_payload()
        return resume_learner(payload, models.lightgbm.version, classifier, self._registry.read_file)

    def latest_river(self, lightgbm: str) -> RiverModel:
        """The version that was published last for a LightGBM version; before its first lesson where there is none."""
        last = self.untaught_river(lightgbm)
        for (name, _), payload in self._models.published.items():
            if name == RIVER:
                model = self._load_river(payload)
                last = model if model.lightgbm_version == lightgbm else last
        return last

    def river(self, version: str, lightgbm: str) -> RiverModel:
        """A version of the online model on a LightGBM version: as published, or folded from ``examples`` again."""
        return _once(self._rivers, (version, lightgbm), lambda: self._find_river(version, lightgbm))

    def named(self, versions: Versions) -> ActiveModels:
        """What a decision says that it was made by. Raises `ModelError`, `RegistryError`."""
        return ActiveModels(
            self.lightgbm(versions.lightgbm),
            self.river(versions.river, versions.lightgbm),
            self.policy(versions.policy),
        )

    def _find_river(self, version: str, lightgbm: str) -> RiverModel:
        first = self.untaught_river(lightgbm)
        if first.version == version:
            return first
        if (payload := self._models.published.get((RIVER, version))) is not None:
            return self._load_river(payload)
        if self._bootstrap is None:
            raise ModelError(
                f"the online model {version} is looked for on topic models, and a file has no topics: leave the file "
                "out, or choose --river latest or --river untaught"
            )
        if self._settings.river_classifier is not None:
            raise ModelError(f"the online model {version} is no longer on topic models: choose --river latest")
        return self._fold(version, lightgbm)

    def _fold(self, version: str, lightgbm: str) -> RiverModel:
        """The default layer is (configuration and first example, offset in ``examples``): fold it again."""
        digest, _, at = version.partition("@")
        end = int(at) if at.isdigit() else -1
        config = LayerConfig(lightgbm_version=lightgbm)
        start = next((n for n in range(end + 1) if config.starting_at(n).digest[:VERSION_DIGITS] == digest), None)
        if start is None:
            raise ModelError(f"{version!r} is no online model on LightGBM {lightgbm} of this program's settings")
        learner = new_learner(lightgbm, None, start)
        learner.learn_examples(self._examples(start, end))
        return learner.snapshot(end)

    def _examples(self, start: int, end: int) -> Iterator[Example]:
        topic = self._settings.topic(EXAMPLES.name)
        for record in read_topic(self._bootstrap or "", topic, settings=self._settings, start={0: start}):
            if record.offset >= end:
                return
            if record.value is not None and not self.skips("learn", record):
                yield _decode_example(record.value)

    def _load_river(self, payload: bytes) -> RiverModel:
        return load_river(payload, self._settings.river_classifier, self._registry.read_file)

    def _is_active(self, name: str) -> bool:
        return self._registry.active(name) is not None or any(of == name for of, _ in self._models.published)

    def _version(self, name: str, version: str) -> str:
        if version != ACTIVE:
            return version
        published = [known for of, known in self._models.published if of == name]
        found = published[-1] if published else self._registry.active(name)
        if found is None:
            raise RegistryError(
                f"there is no {name} version in force, in the registry {self._registry.path} or on the cluster: "
                "`fraud-pipeline train` makes one, FRAUD_PIPELINE_REGISTRY_DIR names another registry"
            )
        return found

    def _payload(self, name: str, version: str) -> bytes:
        payload = self._models.published.get((name, version))
        return payload if payload is not None else self._registry.load(name, version)

    def rates(self, rules: CardRules) -> RateTable:
        """The rate table by which a batch was judged. Raises `RatesError` where it is not on ``models``."""
        try:
            return load(self._models.rates[rules.rates_version, rules.rates_digest])
        except KeyError:
            raise RatesError(
                f"transactions were judged by rate table {rules.rates_version!r} ({rules.rates_digest}), which topic "
                f"{self._settings.topic(MODELS.name)} does not hold: publish its file with `fraud-pipeline rates FILE`"
            ) from None

    def skips(self, agent: str, record: Record) -> bool:
        """Return whether ``record`` is quarantined, so that every reading of ``agent`` skips it."""
        return self._quarantined.skips(agent, record)

    @cached_property
    def _quarantined(self) -> QuarantinedRecords:
        found = QuarantinedRecords(self._settings)
        if self._bootstrap is not None:
            records = read_topic(self._bootstrap, self._settings.topic(CONTROL.name), settings=self._settings)
            for _, item in readable(records, decode_control, not_counted):
                if isinstance(item, Quarantine):
                    found.add(item)
        return found

    @cached_property
    def _models(self) -> "_Models":
        found = _Models()
        if self._bootstrap is not None:
            for record in read_topic(self._bootstrap, self._settings.topic(MODELS.name), settings=self._settings):
                found.take(record.key or b"", record.value)
        return found


@dataclass(slots=True)
class _Models:
    """What the topic ``models`` holds."""

    published: dict[tuple[str, str], bytes] = field(default_factory=dict)
    """Payload by name and version; what was published last stands last."""
    rates: dict[tuple[str, str], bytes] = field(default_factory=dict)
    """Content by version and digest."""

    def take(self, key: bytes, value: bytes | None) -> None:
        """Take in a record."""
        if value is None:
            return
        if key.startswith(_RATES):
            table = _decode_rates(value)
            self.rates.setdefault((table.version, table.digest), bytes(table.table))
        elif not key.startswith(_CONTROL):
            message = _decode_model(value)
            payload = bytes(message.payload)
            # Workers refuse one that is not what its record says, and go on with the one before.
            if payload_digest(payload) == message.digest:
                self.published.pop((message.name, message.version), None)
                self.published[message.name, message.version] = payload


def with_threshold(policy: Policy, threshold: float) -> Policy:
    """The same policy with another threshold."""
    return Policy(
        threshold,
        blend=policy.blend,
        audit_rate=policy.audit_rate,
        rules=policy.rules,
        max_reasons=policy.max_reasons,
        lightgbm_version=policy.lightgbm_version,
        metadata=policy.metadata,
    )


def _once(known: dict[K, V], key: K, make: Callable[[], V]) -> V:
    if key not in known:
        known[key] = make()
    return known[key]
