"""A further kind of model is one registration and two wire fields: a third decision decides through the real engine."""

import hashlib
import math
from typing import Any

import pytest

from pipeline.decision.policy import Policy
from pipeline.scoring.errors import ModelError
from pipeline.scoring.kinds import BESIDE, BY_NAME, KINDS, LIGHTGBM, WITH_LOG_ODDS
from schemas.messages import Decision, DecisionFeatures, Example, ModelScores, Versions
from tests.helpers.third_kind import BLEND, NAME, WEIGHT
from tests.helpers.worker import printed_json


@pytest.fixture(scope="module")
def decided() -> dict[str, Any]:
    """Decisions of a process with a third kind."""
    found: dict[str, Any] = printed_json("tests.helpers.third_kind")
    return found


VERSION = hashlib.sha256(b'{"limit": 100}').hexdigest()[:12]


def sigmoid(logit: float) -> float:
    return 1.0 / (1.0 + math.exp(-logit))


def own_logit(decision: dict[str, Any]) -> float:
    return 3.0 if decision["amount"] >= 100 else -3.0


def test_the_wire_has_a_field_for_every_kind() -> None:
    assert ModelScores.__struct_fields__ == tuple(BY_NAME)
    assert Versions.__struct_fields__ == (*BY_NAME, "policy", "kernel", "rates", "rules", "lists")
    for message in (Decision, DecisionFeatures, Example):
        assert {kind.log_odds for _, kind in WITH_LOG_ODDS} <= {*message.__struct_fields__}


def test_every_kind_beside_lightgbm_has_a_reason() -> None:
    assert KINDS[0] is LIGHTGBM
    assert all(kind.reason is not None for kind in BESIDE)


def test_a_third_kind_is_scored_and_blended(decided: dict[str, Any]) -> None:
    assert len(decided["decisions"]) == 40
    for decision in decided["decisions"]:
        assert decision["model_scores"] == pytest.approx(
            {
                "lightgbm": sigmoid(decision["logit"]),
                "river": sigmoid(decision["river_logit"]),
                NAME: sigmoid(own_logit(decision)),
            }
        )
        rest = (1 - BLEND) * decision["logit"] + BLEND * decision["river_logit"]
        assert decision["score"] == pytest.approx(sigmoid((1 - WEIGHT) * rest + WEIGHT * own_logit(decision)))


def test_its_version_is_named_wherever_versions_are(decided: dict[str, Any]) -> None:
    versions = [decision["versions"] for decision in decided["decisions"]]
    assert {decision[NAME] for decision in versions} == {VERSION}
    assert decided["rows"] == versions
    assert decided["exported"][f"versions_{NAME}"] == [VERSION] * 40
    assert set(decided["frame"][f"{NAME}_version"]) == {VERSION}
    assert {round(value, 9) for value in decided["frame"][NAME]} <= {round(sigmoid(3.0), 9), round(sigmoid(-3.0), 9)}
    assert decided["unpublished"].get(NAME, "none") == "none", "it is absent, like all that has its default"


def test_what_a_decision_names_is_found_again(decided: dict[str, Any]) -> None:
    assert decided["found"] == decided["decisions"][0]["versions"] | {"rates": "1"}


def test_what_it_adds_is_a_reason_of_alerts(decided: dict[str, Any]) -> None:
    decisions = {decision["transaction_id"]: decision for decision in decided["decisions"]}
    reasons = [
        (reason, decisions[alert["transaction_id"]])
        for alert in decided["alerts"]
        for reason in alert["reasons"]
        if reason["feature"] == NAME
    ]
    assert len(reasons) > 10
    for reason, decision in reasons:
        assert (reason["code"], reason["sentence"]) == ("OVER_LIMIT", "Over the limit (100).")
        assert reason["contribution"] == pytest.approx(WEIGHT * (own_logit(decision) - decision["logit"]), abs=1e-4)


def test_its_metrics_have_series_from_the_start(decided: dict[str, Any]) -> None:
    assert decided["changes"] == 0.0


def test_a_policy_weighs_registered_kinds_alone() -> None:
    assert Policy(0.5, blend=0.3).model_weights == [0.3]
    with pytest.raises(ModelError, match="a weight for 'limit', which is no model"):
        Policy(0.5, weights={"limit": 0.5})
    with pytest.raises(ModelError, match="a weight for 'river'"):
        Policy(0.5, weights={"river": 0.5})


def test_a_policy_without_weights_keeps_its_version() -> None:
    assert b"weights" not in Policy(0.5).payload
    assert Policy(0.5, weights={}).version == Policy(0.5).version
