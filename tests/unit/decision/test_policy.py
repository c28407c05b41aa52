import numpy as np
import pytest
from msgspec.structs import replace

from pipeline.decision.audit_sample import Audit, Stratum, with_key
from pipeline.decision.policy import Policy
from pipeline.decision.rules import PolicyRule
from pipeline.learning.sampling import (
    AUDIT_SAMPLE,
    NEGATIVE_SAMPLE,
    keep_negative,
    keyed_positions,
    sample_position,
    sample_positions,
)
from pipeline.scoring.errors import ModelError
from tests.helpers.models import COLUMN, matrix

RULE = PolicyRule(code="LARGE", feature="amount", op=">", value=5_000.0, sentence="More than 5,000.")


def identities(rows: int) -> np.ndarray:
    return np.random.default_rng(11).integers(0, 2**64, rows, dtype=np.uint64)


def test_scores_at_the_threshold_alert_and_below_do_not() -> None:
    decided = Policy(0.5).decide(np.array([0.49, 0.5, 0.51]), matrix(3), identities(3))
    assert decided.alert.tolist() == [False, True, True]
    assert decided.selection == [None, "score", "score"]
    assert decided.selection_probability.tolist() == [0.0, 1.0, 1.0]


def test_a_rule_alerts_whatever_the_score_says() -> None:
    matched = np.array([False, True, False, True])
    decided = Policy(0.5).decide(np.array([0.1, 0.1, 0.1, 0.9]), matrix(4), identities(4), matched)
    assert decided.selection == [None, "rule", None, "score"]
    assert decided.selection_probability.tolist() == [0.0, 1.0, 0.0, 1.0]


def test_the_audit_sample_is_a_share_and_always_the_same() -> None:
    rows = 40_000
    policy, scores, who, features = Policy(0.5, audit_rate=0.02), np.zeros(rows), identities(rows), matrix(1)
    features = np.broadcast_to(features, (rows, features.shape[1]))
    decided = policy.decide(scores, features, who)
    assert abs(decided.alert.mean() - 0.02) < 0.003
    assert set(decided.selection) == {None, "audit"}
    assert set(decided.selection_probability.tolist()) == {0.02}
    turned = policy.decide(scores, features, who[::-1])
    np.testing.assert_array_equal(turned.alert[::-1], decided.alert)
    more = Policy(0.5, audit_rate=0.05).decide(scores, features, who)
    assert np.all(more.alert[decided.alert]), "a higher rate keeps what a lower one had"


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
        0.25,
        blend=0.5,
        audit_rate=0.01,
        old_rules=(RULE,),
        max_reasons=3,
        lightgbm_version="abc",
        metadata={"why": "test"},
    )
    again = Policy.from_payload(policy.to_payload())
    assert (again.version, again.old_rules, again.blend, again.metadata) == (
        policy.version,
        (RULE,),
        0.5,
        {"why": "test"},
    )
    assert policy.replace(threshold=0.3).version != policy.version
    assert policy.replace(threshold=0.3).old_rules == (RULE,)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"threshold": -0.1}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
        ({"threshold": 0.5, "blend": 1.5}, "blend"),
        ({"threshold": 0.5, "audit_rate": 2.0}, "audit rate"),
        ({"threshold": 0.5, "max_reasons": 0}, "at least one reason"),
        ({"threshold": 0.5, "old_rules": (replace(RULE, feature="b"),)}, "no field b"),
        ({"threshold": 0.5, "old_rules": (replace(RULE, op="~"),)}, "no operator ~"),
        ({"threshold": 0.5, "old_rules": (RULE,) * 101}, "a policy has at most 100 rules, not 101"),
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


AUDIT = Audit(
    rate=0.01,
    key_id="2026-11",
    strata=(
        Stratum(feature="merchant_surge", op=">", value=3.0, rate=0.2),
        Stratum(feature="merchant_seconds_since_first", op="<", value=86_400.0, rate=0.1),
    ),
)
KEYS = {"2026-11": "a secret", "2026-12": "another one"}


def audited_rows(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Features and probabilities: a tenth each with a surge, new, both, and none of either."""
    features = np.broadcast_to(matrix(1), (rows, len(COLUMN))).copy()
    kind = np.arange(rows) % 10
    features[:, COLUMN["merchant_surge"]] = np.where(np.isin(kind, (0, 2)), 5.0, np.where(kind == 3, np.nan, 1.0))
    features[:, COLUMN["merchant_seconds_since_first"]] = np.where(np.isin(kind, (1, 2)), 60.0, 1e7)
    return features, np.select([np.isin(kind, (0, 2)), kind == 1], [0.2, 0.1], 0.01)


def test_policies_have_the_bytes_of_earlier_releases() -> None:
    policy = Policy(0.25, blend=0.5, audit_rate=0.01, old_rules=(RULE,), lightgbm_version="abc", metadata={"a": "b"})
    rules = b'"rules":[{"code":"LARGE","feature":"amount","op":">","value":5000.0,"sentence":"More than 5,000."}]'
    assert policy.payload == (
        b'{"kind":"policy","threshold":0.25,"blend":0.5,"audit_rate":0.01,' + rules + b',"max_reasons":5,'
        b'"lightgbm_version":"abc","metadata":{"a":"b"}}'
    )
    assert policy.replace(old_rules=()).payload == policy.payload.replace(rules, b'"rules":[]')


def test_an_audit_selects_each_row_with_the_probability_that_it_records() -> None:
    rows = 60_000
    features, expected = audited_rows(rows)
    who = identities(rows)
    policy = Policy(0.5, audit=AUDIT).keyed(KEYS)
    decided = policy.decide(np.zeros(rows), features, who)
    np.testing.assert_array_equal(decided.selection_probability, expected)
    for probability in (0.01, 0.1, 0.2):
        share = decided.alert[expected == probability].mean()
        assert abs(share - probability) < 4 * np.sqrt(probability / (rows / 10))
    order = np.random.default_rng(0).permutation(rows)
    again = policy.decide(np.zeros(rows), features[order], who[order])
    np.testing.assert_array_equal(again.alert, decided.alert[order])
    certain = policy.decide(np.ones(rows), features, who)
    assert set(certain.selection_probability.tolist()) == {1.0}


def test_the_key_orders_the_audit_and_nothing_else_does() -> None:
    rows = 40_000
    features, _ = audited_rows(rows)
    who, scores = identities(rows), np.zeros(rows)
    key = Policy(0.5, audit=AUDIT).keyed(KEYS).decide(scores, features, who).alert
    again = Policy.from_payload(Policy(0.5, audit=AUDIT).payload).keyed(KEYS).replace(threshold=0.4)
    np.testing.assert_array_equal(again.decide(scores, features, who).alert, key)
    changed = Audit(rate=AUDIT.rate, key_id="2026-12", strata=AUDIT.strata)
    other = Policy(0.5, audit=changed).keyed(KEYS).decide(scores, features, who).alert
    overlap = (key & other).sum() / key.sum()
    assert overlap < 0.2
    plain = Audit(rate=0.02)
    np.testing.assert_array_equal(
        Policy(0.5, audit=plain).keyed({}).decide(scores, features, who).alert,
        Policy(0.5, audit_rate=0.02).decide(scores, features, who).alert,
    )


def test_another_key_under_the_same_id_is_refused() -> None:
    audit = with_key(Audit(rate=0.1), "2026-11", KEYS)
    policy = Policy.from_payload(Policy(0.5, audit=audit).payload)
    assert policy.keyed(KEYS).version == policy.version
    with pytest.raises(ModelError, match="another key '2026-11'"):
        policy.keyed({"2026-11": "another"})
    # The key decides about the version, and is not in it.
    other = with_key(Audit(rate=0.1), "2026-11", {"2026-11": "another"})
    assert Policy(0.5, audit=other).version != policy.version
    assert KEYS["2026-11"].encode() not in policy.payload


def test_a_new_audit_needs_a_key() -> None:
    for key_id, why in ((None, "name it with --audit-key-id"), ("2030-01", "has no key '2030-01'")):
        with pytest.raises(ModelError, match=why):
            with_key(Audit(rate=0.1), key_id, KEYS)


def test_keyed_positions_are_uniform_and_independent_of_each_other() -> None:
    who = np.arange(20_000, dtype=np.uint64)
    positions, other = keyed_positions(who, AUDIT_SAMPLE, b"k1"), keyed_positions(who, AUDIT_SAMPLE, b"k2")
    assert abs(np.corrcoef(positions, other)[0, 1]) < 0.03
    assert np.bincount((positions * 10).astype(int), minlength=10).min() > 1_850
    assert not np.array_equal(positions, keyed_positions(who, NEGATIVE_SAMPLE, b"k1"))


def test_a_policy_without_its_key_is_refused_with_what_to_do() -> None:
    policy = Policy(0.5, audit=AUDIT)
    with pytest.raises(ModelError, match=r"'2026-11'.*FRAUD_PIPELINE_AUDIT_KEYS"):
        policy.keyed({"2026-12": "x"})
    with pytest.raises(ModelError, match="needs the key"):
        policy.decide(np.zeros(1), matrix(1), identities(1))


@pytest.mark.parametrize(
    ("audit", "why"),
    [
        (Audit(rate=0.0), "above 0"),
        (Audit(rate=1.5), "at most 1"),
        (Audit(rate=0.1, key_id=""), "key_id"),
        (Audit(rate=0.1, strata=(Stratum(feature="mood", op=">", value=1.0, rate=0.1),)), "'mood'"),
        (Audit(rate=0.1, strata=(Stratum(feature="amount", op="~", value=1.0, rate=0.1),)), "'~'"),
        (Audit(rate=0.1, strata=(Stratum(feature="amount", op=">", value=1.0, rate=1.1),)), "between 0 and 1"),
        (Audit(rate=0.1, strata=AUDIT.strata * 11), "at most 20 strata"),
    ],
)
def test_an_audit_that_makes_no_sense_is_refused(audit: Audit, why: str) -> None:
    with pytest.raises(ModelError, match=why):
        Policy(0.5, audit=audit)
    with pytest.raises(ModelError, match="not both"):
        Policy(0.5, audit_rate=0.1, audit=Audit(rate=0.1))
