"""A champion that is trained in a moment, and policies with it."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from pipeline.decision.policy import Policy
from pipeline.decision.rules import FIELDS, Rule, RuleSet
from pipeline.engine.records.results import Result
from pipeline.engine.scores.active_models import ActiveModels, ModelSet
from pipeline.engine.scores.decider import Decider
from pipeline.engine.scores.score import ScorePartition
from pipeline.expressions.parse import parse_expression
from pipeline.models.publish import VersionToPublish, publish_active
from pipeline.scoring.kinds import Scorer
from pipeline.scoring.lightgbm_model import LightGBMModel
from pipeline.scoring.river_factory import first_river, load_river
from pipeline.settings import Settings
from schemas.records import Record
from tests.helpers.models import small_model

LARGE_AMOUNT = 900.0
"""From here on the rule raises an alert, whatever the score."""


def rule(code: str, expression: str, **changes: Any) -> Rule:
    """An active rule that alerts."""
    tree = parse_expression(expression, FIELDS, lists=True).data()
    given = {"owner": "tests", "reason": f"Because of {code}.", "severity": "medium", "action": "alert"}
    return Rule(**{"code": code, "state": "active", "tree": tree, **given, **changes})


LARGE = rule("large-amount", f"amount >= {LARGE_AMOUNT}", reason="The amount is 900 or more.")
RULES = RuleSet([LARGE])


def policy(threshold: float = 0.6, **changes: object) -> Policy:
    """A threshold."""
    return Policy(threshold, **{"blend": 1.0, "lightgbm_version": small_model().version, **changes})  # type: ignore[arg-type]


def active(river: Scorer | None = None, rules: RuleSet = RULES, **changes: object) -> ActiveModels:
    """The small champion with its policy and one rule by amount; ``changes`` are the policy's."""
    model = small_model()
    return ActiveModels(model, river or first_river(), policy(**changes), rules=rules)  # type: ignore[arg-type]


def decide(state: ScorePartition, records: Sequence[Record], models: ActiveModels, now: datetime) -> Result:
    """The decisions of one partition's records, all with their features."""
    return Decider("EUR", 1, all_features=True).process([(state, records)], models, now)


def no_files(name: str, digest: str) -> bytes:
    """A registry without files: the default layer travels as numbers."""
    raise AssertionError(f"nobody should ask for {name} with digest {digest}")


def empty_model_set() -> ModelSet:
    """A model set before its first record, as a worker with default settings makes it."""
    return ModelSet(first_river, lambda payload: load_river(payload, None, no_files))


def publish_champion(bootstrap: str, settings: Settings, model: LightGBMModel, policy: Policy) -> None:
    """Publish the first versions of a cluster, a LightGBM version with a policy for it."""
    publish_active(bootstrap, settings, VersionToPublish.from_models(model, policy))
