import numpy as np
import pytest

from pipeline.decision.policy import Policy, Rule
from pipeline.learning.sampling import AUDIT_SAMPLE, NEGATIVE_SAMPLE, keep_negative, sample_position, sample_positions
from pipeline.scoring.errors import ModelError
from tests.unit.model_helpers import COLUMN, matrix

RULE = Rule(code="LARGE", feature="amount", op=">", value=5_000.0, sentence="More than 5,000.")


def identities(rows: int) -> np.ndarray:
    return np.random.default_rng(11).integers(0, 2**64, rows, dtype=np.uint64)


def test_scores_at_the_threshold_alert_and_below_do_not() -> None:
    verdicts = Policy(0.5).decide(np.array([0.49, 0.5, 0.51]), matrix(3), identities(3))
    assert verdicts.alert.tolist() == [False, True, True]
    assert verdicts.selection == [None, "score", "score"]
    assert verdicts.selection_probability.tolist() == [0.0, 1.0, 1.0]


def test_a_rule_alerts_whatever_the_score_says() -> None:
    features = matrix(4)
    features[:, COLUMN["amount"]] = [5_000.0, 5_000.01, np.nan, 9_000.0]
    verdicts = Policy(0.5, rules=(RULE,)).decide(np.array([0.1, 0.1, 0.1, 0.9]), features, identities(4))
    assert verdicts.selection == [None, "rule", None, "score"]
    assert verdicts.selection_probability.tolist() == [0.0, 1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        (">", [False, False, True, False]),
        (">=", [False, True, True, False]),
        ("<", [True, False, False, False]),
        ("<=", [True, True, False, False]),
        ("==", [False, True, False, False]),
        ("!=", [True, False, True, False]),
    ],
)
def test_comparisons_and_missing_values(op: str, expected: list[bool]) -> None:
    features = matrix(4)
    features[:, COLUMN["amount"]] = [1.0, 2.0, 3.0, np.nan]
    rule = Rule(code="X", feature="amount", op=op, value=2.0, sentence="X.")
    assert rule.matches(features).tolist() == expected


def test_the_audit_sample_is_a_share_and_always_the_same() -> None:
    rows = 40_000
    policy, scores, who, features = Policy(0.5, audit_rate=0.02), np.zeros(rows), identities(rows), matrix(1)
    features = np.broadcast_to(features, (rows, features.shape[1]))
    verdicts = policy.decide(scores, features, who)
    assert abs(verdicts.alert.mean() - 0.02) < 0.003
    assert set(verdicts.selection) == {None, "audit"}
    assert set(verdicts.selection_probability.tolist()) == {0.02}
    turned = policy.decide(scores, features, who[::-1])
    np.testing.assert_array_equal(turned.alert[::-1], verdicts.alert)
    more = Policy(0.5, audit_rate=0.05).decide(scores, features, who)
    assert np.all(more.alert[verdicts.alert]), "a higher rate keeps what a lower one had"


def test_the_samples_are_independent_and_one_by_one_the_same() -> None:
    who = identities(20_000)
    audit, negative = sample_positions(who, AUDIT_SAMPLE), sample_positions(who, NEGATIVE_SAMPLE)
    assert abs(np.corrcoef(audit, negative)[0, 1]) < 0.03
    assert audit.min() >= 0.0
    assert audit.max() < 1.0
    for identity, position in zip(who[:200].tolist(), negative[:200].tolist(), strict=True):
        assert sample_position(identity, NEGATIVE_SAMPLE) == position
        assert keep_negative(identity, 0.1) == (position < 0.1)
    assert keep_negative(0, 1.0)


def test_a_payload_gives_the_same_policy() -> None:
    policy = Policy(
        0.25, blend=0.5, audit_rate=0.01, rules=(RULE,), max_reasons=3, lightgbm_version="abc", metadata={"why": "test"}
    )
    again = Policy.from_payload(policy.to_payload())
    assert (again.version, again.rules, again.blend, again.metadata) == (policy.version, (RULE,), 0.5, {"why": "test"})
    assert policy.replace(threshold=0.3).version != policy.version
    assert policy.replace(threshold=0.3).rules == (RULE,)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"threshold": -0.1}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
        ({"threshold": 0.5, "blend": 1.5}, "blend"),
        ({"threshold": 0.5, "audit_rate": 2.0}, "audit rate"),
        ({"threshold": 0.5, "max_reasons": 0}, "at least one reason"),
        ({"threshold": 0.5, "rules": (Rule(code="A", feature="b", op=">", value=1.0, sentence="s"),)}, "no feature"),
        ({"threshold": 0.5, "rules": (Rule(code="A", feature="hour", op="~", value=1.0, sentence="s"),)}, "compares"),
        ({"threshold": 0.5, "rules": (Rule(code="", feature="hour", op=">", value=1.0, sentence="s"),)}, "code"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(arguments: dict, complaint: str) -> None:
    with pytest.raises(ModelError, match=complaint):
        Policy(**arguments)


def test_other_payloads_are_refused() -> None:
    with pytest.raises(ModelError, match="not a policy"):
        Policy.from_payload(b'{"kind": "policy"}')
    with pytest.raises(ModelError, match="river-layer"):
        Policy.from_payload(Policy(0.5).to_payload().replace(b'"policy"', b'"river-layer"'))
