"""Models by version: of the registry, and of the cluster's ``models``."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property, partial
from typing import Final, TypeVar

from pipeline.decision.lists import refuse_unknown_lists
from pipeline.decision.policy import Policy
from pipeline.decision.rules import NO_RULES, RULES, RuleSet, lists_read
from pipeline.engine.cards.card_options import CardOptions
from pipeline.engine.scores.active_models import ActiveModels, ModelSet
from pipeline.kafka.cluster.admin import reached
from pipeline.kafka.cluster.clients import admin_client
from pipeline.models.library import PublishedVersions
from pipeline.models.list_changes import activated_lists, list_payload
from pipeline.models.list_log import ListHistory, ListLog
from pipeline.models.published_files import PublishedFiles
from pipeline.models.registry import LIGHTGBM, POLICY, Registry, RegistryError
from pipeline.scoring.errors import ModelError
from pipeline.scoring.kinds import BESIDE, Scorer, Unpublished
from pipeline.scoring.lightgbm_model import LightGBMModel
from pipeline.scoring.river_factory import first_river, load_river, new_learner, resume_learner
from pipeline.scoring.training_updates import RiverLearner
from pipeline.settings import Settings
from schemas.codec import timestamp_us
from schemas.messages import CardConfig, Versions
from schemas.records import Record
from schemas.times import time_text

ACTIVE: Final = "active"
K = TypeVar("K")
V = TypeVar("V")


class ModelLibrary:
    """Versions of models, wherever they are kept; each is read once."""

    def __init__(self, settings: Settings, bootstrap: str | None = None, rules: RuleSet | None = None) -> None:
        """``bootstrap`` names the cluster whose versions are looked at too; ``rules`` take the place of its rules."""
        self._settings, self._bootstrap, self._given_rules = settings, bootstrap, rules
        self._registry = Registry(settings.registry_path)
        self._lightgbm: dict[str, LightGBMModel] = {}
        self._policies: dict[str, Policy] = {}
        self._rivers: dict[str, Scorer] = {}
        self._rules: dict[str, RuleSet] = {}

    def lightgbm(self, version: str) -> LightGBMModel:
        """A LightGBM version, or the active one (`ACTIVE`). Raises `RegistryError`, `ModelError`."""
        version = self._version(LIGHTGBM, version)
        return _once(self._lightgbm, version, lambda: LightGBMModel.from_payload(self._payload(LIGHTGBM, version)))

    def policy(self, version: str) -> Policy:
        """A policy, or the active one. Raises `RegistryError`, `ModelError`."""
        version = self._version(POLICY, version)
        keys = self._settings.audit_keys
        return _once(self._policies, version, lambda: Policy.from_payload(self._payload(POLICY, version)).keyed(keys))

    def policy_for(self, lightgbm: str) -> Policy:
        """The newest policy whose threshold was chosen for a LightGBM version, else the active one."""
        versions = [entry.version for entry in self._registry.entries(POLICY)]
        if not versions or self._is_active(POLICY):
            # Before the newest, if it fits.
            versions.append(self._version(POLICY, ACTIVE))
        # What is only looked at needs no key of an audit.
        known = [Policy.from_payload(self._payload(POLICY, version)) for version in versions]
        chosen = next((policy for policy in reversed(known) if policy.lightgbm_version == lightgbm), known[-1])
        return self.policy(chosen.version)

    def active_policy(self) -> Policy | None:
        """The active policy, if there is one. Raises `RegistryError`, `ModelError`."""
        return self.policy(ACTIVE) if self._is_active(POLICY) else None

    def untrained_river(self) -> Scorer:
        """Return the online model before its first training update, which changes nothing."""
        return first_river(self._settings.river_classifier)

    def learner(self, models: ActiveModels) -> tuple[RiverLearner, int]:
        """A learner of one's own that goes on from the online model of ``models``, and how many examples that had."""
        classifier = self._settings.river_classifier
        if isinstance(models.river, Unpublished):
            return new_learner(classifier), 0
        return resume_learner(models.river.to_payload(), classifier, self._registry.read_file)

    def latest_river(self) -> Scorer:
        """Return the version that was published last; the one before its first training update where there is none."""
        for payload in self._cluster.rivers_newest_first() if self._cluster is not None else ():
            # Workers refuse one that cannot be used, and go on with the one before it.
            with suppress(ModelError):
                return self._load_river(payload)
        return self.untrained_river()

    def river(self, version: str, lightgbm: str) -> Scorer:
        """Return a version of the online model that scored beside a LightGBM version."""
        return _once(self._rivers, version, lambda: self._find_river(version, lightgbm))

    def named(self, versions: Versions) -> ActiveModels:
        """Load the models that a decision names. Raises `ModelError`, `RegistryError`."""
        return ActiveModels(
            self.lightgbm(versions.lightgbm),
            self.river(versions.river, versions.lightgbm),
            self.policy(versions.policy),
            {
                kind.name: kind.load(self._payload(kind.name, version))
                for kind in BESIDE
                if kind.load is not None and (version := getattr(versions, kind.name)) != Unpublished().version
            },
            self._named_rules(versions.rules),
            self.list_history.named(versions.lists),
        )

    def rules(self) -> RuleSet:
        """Return the rules that were given, or else the active ones of the cluster.

        Raises:
            ModelError: They read a list that the cluster does not have.
        """
        if self._given_rules is not None:
            read = lists_read(self._given_rules.rules)
            refuse_unknown_lists(read, lambda: self.list_history.numbered(-1).definitions)
            return self._given_rules
        return NO_RULES if self._cluster is None else self._cluster.model_set.rules

    def rules_since(self) -> Mapping[tuple[str, str], str]:
        """Return since when the rules of the cluster are in their states, RFC 3339, by code and state."""
        steps = {} if self._cluster is None or self._given_rules is not None else self._cluster.history.rules_since()
        return {key: time_text(timestamp_us(moment)) for key, moment in steps.items()}

    @cached_property
    def list_history(self) -> ListHistory:
        """The versions of the cluster's lists; empty without a cluster."""
        log = ListLog(self._bootstrap or "", self._settings)
        if self._cluster is None:
            return ListHistory(log)
        return ListHistory(log, activated_lists(self._cluster), partial(list_payload, self._cluster))

    def _named_rules(self, version: str) -> RuleSet:
        if not version:
            return NO_RULES
        return _once(self._rules, version, lambda: RuleSet.from_payload(self._payload(RULES, version)))

    def others(self) -> Mapping[str, Scorer]:
        """Return the active models of kinds besides LightGBM and River, by name."""
        return {} if self._cluster is None else self._cluster.model_set.others

    def _find_river(self, version: str, lightgbm: str) -> Scorer:
        first = self.untrained_river()
        if first.version == version:
            return first
        if version.endswith("@0"):
            # Under another declaration of features: nothing was learned, and nothing is published.
            return Unpublished(version)
        if self._cluster is None:
            raise ModelError(
                f"the online model {version} is looked for on topic models, and a file has no topics: name a cluster "
                "with --bootstrap, or choose --river latest or --river untrained"
            )
        payload = self._cluster.river(version, lightgbm)
        if payload is None:
            raise ModelError(f"the online model {version} is not on topic models: choose --river latest")
        model = self._load_river(payload)
        if model.version != version:
            raise ModelError(f"topic models has {model.version} under the name {version}: choose --river latest")
        return model

    @cached_property
    def _load_river(self) -> Callable[[bytes], Scorer]:
        # None of the library's own: its readers of topics close when nobody has it any more, not when a cycle is found.
        classifier, read_file = self._settings.river_classifier, self._registry.read_file
        return lambda payload: load_river(payload, classifier, read_file)

    def _is_active(self, name: str) -> bool:
        return self._registry.active(name) is not None or self._published(name) is not None

    def _version(self, name: str, version: str) -> str:
        if version != ACTIVE:
            return version
        found = self._published(name) or self._registry.active(name)
        if found is None:
            raise RegistryError(
                f"there is no active {name} version, in the registry {self._registry.path} or on the cluster: "
                "`fraud-pipeline train` makes one, FRAUD_PIPELINE_REGISTRY_DIR names another registry"
            )
        return found

    def _published(self, name: str) -> str | None:
        if self._cluster is None:
            return None
        active = {LIGHTGBM: self._cluster.model_set.lightgbm, POLICY: self._cluster.model_set.policy}[name]
        return None if active is None else active.version

    def _payload(self, name: str, version: str) -> bytes:
        payload = self._cluster.payload(name, version) if self._cluster is not None else None
        return payload if payload is not None else self._registry.load(name, version)

    def under(self, options: CardOptions, config: CardConfig) -> CardOptions:
        """Options by which a batch was processed; raises `RatesError` or `MappingError` for a file that is nowhere."""
        return self._files.under(options, config)

    def learn_declarations(self) -> None:
        """Learn which declarations of features are published, before the first block that names one is read."""
        _ = self._files

    @cached_property
    def _cluster(self) -> PublishedVersions | None:
        if self._bootstrap is None:
            return None
        # What reads topics waits for brokers that are away; one that was never there is reported.
        reached(admin_client(self._bootstrap, settings=self._settings), self._bootstrap)
        untrained = partial(first_river, self._settings.river_classifier)
        return PublishedVersions.on(self._bootstrap, self._settings, ModelSet(untrained, self._load_river))

    @cached_property
    def _files(self) -> PublishedFiles:
        return PublishedFiles.on(self._bootstrap or "", self._settings)

    def without(self, agent: str, records: Sequence[Record]) -> Sequence[Record]:
        """Return the records that ``agent`` does not skip, with the rows of them that it skips."""
        return records if self._cluster is None else self._cluster.quarantined.without(agent, records)


def _once(known: dict[K, V], key: K, make: Callable[[], V]) -> V:
    if key not in known:
        known[key] = make()
    return known[key]
