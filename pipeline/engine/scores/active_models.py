"""The active versions: built from the contents of ``models``, swapped as a whole between two batches."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from pipeline.decision.lists import LISTS, NO_LISTS, ListSet
from pipeline.decision.policy import Policy
from pipeline.decision.rules import NO_RULES, RULES, RuleSet, joined
from pipeline.features.catalogue import KERNEL_VERSION
from pipeline.scoring.kinds import BESIDE, BY_NAME, LIGHTGBM, RIVER, Scorer, Unpublished
from pipeline.scoring.lightgbm_model import LightGBMModel
from schemas.messages import ModelVersion, Versions

RiverLoader = Callable[[bytes], Scorer]
"""Builds a scorer from the payload of a ``river`` record (a configured classifier's state lies in the registry)."""
ListLoader = Callable[[bytes], ListSet]
"""Reads the lists of a ``lists`` record, whose entries are on the topic of that name."""
FirstRiver = Callable[[], Scorer]
"""Returns the online model as it is before its first training update."""


_UNPUBLISHED: Final = Unpublished()


@dataclass(frozen=True, slots=True)
class ActiveModels:
    """The models that score a batch."""

    lightgbm: LightGBMModel
    river: Scorer
    policy: Policy
    others: Mapping[str, Scorer] = field(default_factory=dict)
    """Models of further kinds, by name."""
    rules: RuleSet = NO_RULES
    lists: ListSet = NO_LISTS

    @property
    def evaluated_rules(self) -> RuleSet:
        """The rules, and those that the policy has from an earlier release."""
        return joined(self.rules, self.policy.old_rules) if self.policy.old_rules else self.rules

    @property
    def beside(self) -> dict[str, Scorer]:
        """The model of each kind of `BESIDE`, by name."""
        return {kind.name: self.river if kind is RIVER else self.others.get(kind.name, _UNPUBLISHED) for kind in BESIDE}

    @property
    def named(self) -> dict[str, LightGBMModel | Scorer | Policy | RuleSet | ListSet]:
        """All that decides, by its name in ``versions``."""
        return {
            LIGHTGBM.name: self.lightgbm,
            **self.beside,
            "policy": self.policy,
            RULES: self.rules,
            LISTS: self.lists,
        }

    def versions(self, rates: str) -> Versions:
        """Return the versions that a decision names, enough to score it again."""
        versions = {name: model.version for name, model in self.named.items()}
        return Versions(**versions, kernel=KERNEL_VERSION, rates=rates)

    def dated(self, lists: ListSet) -> "ActiveModels":
        """The same models with the lists of a time; those that bring lists keep them."""
        return self if self.lists is not NO_LISTS else replace(self, lists=lists)

    def under(self, policy: Policy) -> "ActiveModels":
        """The same models under another policy."""
        return replace(self, policy=policy)


@dataclass(frozen=True, slots=True)
class ModelSet:
    """The usable versions of each model; ``active`` is None until there is a LightGBM version and a policy.

    The online model corrects whichever LightGBM version is active. While none is published, the one before its first
    training update scores, which changes nothing.
    """

    first_river: FirstRiver
    load_river: RiverLoader
    lightgbm: LightGBMModel | None = None
    river: Scorer | None = None
    policy: Policy | None = None
    active: ActiveModels | None = None
    others: Mapping[str, Scorer] = field(default_factory=dict)
    """Models of further kinds, by name."""
    rules: RuleSet = NO_RULES
    lists: ListSet = NO_LISTS
    load_lists: ListLoader | None = None
    """None for programs that decide nothing: they read no lists."""
    audit_keys: Mapping[str, str] | None = field(default=None, repr=False)
    """Keys of audit samples by id; a policy that names another one cannot be used. None for programs that decide
    nothing: they need no key."""

    def updated(self, *versions: ModelVersion) -> "ModelSet":
        """Return the model set with all of ``versions``, whose contents have the digests that they name.

        A name that this release does not know changes nothing.

        Raises:
            ModelError: One of them cannot be used.
        """
        model_set = self
        for version in versions:
            model_set = model_set._with(version)
        return model_set if model_set is self else model_set._composed()

    def _with(self, version: ModelVersion) -> "ModelSet":
        payload = bytes(version.payload)
        if version.name == "policy":
            policy = Policy.from_payload(payload)
            return replace(self, policy=policy if self.audit_keys is None else policy.keyed(self.audit_keys))
        if version.name == RULES:
            return replace(self, rules=RuleSet.from_payload(payload))
        if version.name == LISTS:
            return self if self.load_lists is None else replace(self, lists=self.load_lists(payload))
        kind = BY_NAME.get(version.name)
        if kind is LIGHTGBM:
            return replace(self, lightgbm=LightGBMModel.from_payload(payload))
        if kind is RIVER:
            return replace(self, river=self.load_river(payload))
        if kind is not None and kind.load is not None:
            return replace(self, others={**self.others, kind.name: kind.load(payload)})
        return self

    def _composed(self) -> "ModelSet":
        if self.lightgbm is None or self.policy is None:
            return self
        river = self.river if self.river is not None else self.first_river()
        active = ActiveModels(self.lightgbm, river, self.policy, self.others, self.rules, self.lists)
        return replace(self, active=active)
