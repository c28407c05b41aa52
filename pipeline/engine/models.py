"""The versions in force: built from the records of ``models``, swapped as a whole between two batches."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from pipeline.decision.policy import Policy
from pipeline.features.catalogue import KERNEL_VERSION
from pipeline.scoring.errors import ModelError
from pipeline.scoring.lightgbm_model import LightGBMModel
from pipeline.scoring.payload import payload_digest
from pipeline.scoring.river_model import RiverModel
from schemas.messages import ModelVersion, Versions

RiverLoader = Callable[[bytes], RiverModel]
"""From the payload of a ``river`` record to a scorer (a configured classifier's state lies in the registry)."""
FirstRiver = Callable[[str], RiverModel]
"""The online model as it is before its first lesson on a given LightGBM version (its name)."""


@dataclass(frozen=True, slots=True)
class ActiveModels:
    """What scores a batch."""

    lightgbm: LightGBMModel
    river: RiverModel
    policy: Policy

    def versions(self, rates: str) -> Versions:
        """What a decision names, enough to score it again."""
        return Versions(
            lightgbm=self.lightgbm.version,
            river=self.river.version,
            policy=self.policy.version,
            kernel=KERNEL_VERSION,
            rates=rates,
        )

    def under(self, policy: Policy) -> "ActiveModels":
        """The same models under another policy."""
        return replace(self, policy=policy)


@dataclass(frozen=True, slots=True)
class ModelBoard:
    """The latest record of each model; ``active`` is None until there is a champion and a policy.

    An online model belongs to the LightGBM version whose log-odds it corrects. While the newest record belongs to
    another one, scoring goes on with the online model as it is before its first lesson, which changes nothing.
    """

    first_river: FirstRiver
    load_river: RiverLoader
    lightgbm: LightGBMModel | None = None
    river: RiverModel | None = None
    policy: Policy | None = None
    active: ActiveModels | None = None

    def updated(self, record: ModelVersion) -> "ModelBoard":
        """The board after ``record``; raises `ModelError` where it may not be used."""
        payload = bytes(record.payload)
        if payload_digest(payload) != record.digest:
            raise ModelError(
                f"{record.name} version {record.version} does not have the digest that its record names; "
                "publish that version again"
            )
        match record.name:
            case "lightgbm":
                board = replace(self, lightgbm=LightGBMModel.from_payload(payload))
            case "river":
                board = replace(self, river=self.load_river(payload))
            case "policy":
                board = replace(self, policy=Policy.from_payload(payload))
            case _:
                return self
        return board._composed()

    def _composed(self) -> "ModelBoard":
        if self.lightgbm is None or self.policy is None:
            return self
        river = self.river
        if river is None or river.lightgbm_version != self.lightgbm.version:
            river = self.first_river(self.lightgbm.version)
        return replace(self, active=ActiveModels(self.lightgbm, river, self.policy))
