import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from pipeline.decision.policy import Policy
from pipeline.decision.reason_texts import CODES, REASON_TEXTS, Facts, pattern
from pipeline.decision.reasons import explain, explain_row, score_reason
from pipeline.decision.rules import NO_RULES, RuleSet
from pipeline.features.catalogue import FEATURES, MEANINGS
from pipeline.scoring.kinds import RIVER, Scorer
from pipeline.scoring.lightgbm_model import LightGBMModel
from pipeline.scoring.river_inputs import INPUTS, describe
from pipeline.scoring.river_layer import RiverLayer
from pipeline.scoring.river_learner import LayerLearner
from schemas.messages import Alert, Reason
from tests.helpers.champion import rule
from tests.helpers.models import COLUMN, example, matrix, small_model

GOLDEN = Path(__file__).parents[3] / "schemas/golden/v1/alert.json"
PAGE = Path(__file__).parents[3] / "docs" / "models.md"


@dataclass(frozen=True)
class Models:
    lightgbm: LightGBMModel
    beside: dict[str, Scorer]
    policy: Policy
    evaluated_rules: RuleSet = NO_RULES


def online(weight: float, evidence: str = "") -> Reason:
    return score_reason(RIVER, weight, evidence)


def models(policy: Policy | None = None, river: Scorer | None = None, rules: RuleSet = NO_RULES) -> Models:
    model = small_model()
    return Models(model, {"river": river or RiverLayer.identity()}, policy or Policy(0.5), rules)


def row(**values: float) -> np.ndarray:
    features = np.zeros(len(FEATURES))
    for name, value in values.items():
        features[COLUMN[name]] = value
    return features


def fraud_run(after_2d: int, after_7d: int, after_14d: int, days: float = 10) -> dict[str, float]:
    """Known frauds that began so many days ago, with so many unreported transactions of each age since."""
    ages = {"_2d": after_2d, "": after_7d, "_14d": after_14d}
    return {
        "merchant_known_count_30d": 9,
        "merchant_known_fraud_30d": 4,
        "merchant_unexplained_fraud_30d": 4,
        **{f"merchant_unreported_since_fraud{age}": count for age, count in ages.items()},
        **{f"merchant_fraud_run_seconds{age}": days * 86_400 for age in ages},
    }


def weights(**values: float) -> np.ndarray:
    return row(**values)


def test_every_feature_is_declared_with_its_reason() -> None:
    reported = [name for text in REASON_TEXTS for name in text.features]
    assert sorted(reported) == sorted(FEATURES)


def test_every_code_is_documented_and_nothing_else() -> None:
    table = PAGE.read_text(encoding="utf-8").split("## Reasons")[1].split("\n## ")[0]
    assert sorted(re.findall(r"^\| `([A-Z_]+)` \|", table, re.MULTILINE)) == sorted(CODES)
    for code, meaning in CODES.items():
        assert f"| `{code}` | {meaning} |" in table


def test_an_unusual_amount_reads_as_an_analyst_would_say_it() -> None:
    features = row(amount=412.90, card_usual_amount=65.40, card_amount_to_usual=412.90 / 65.40)
    reasons = explain_row(
        features, weights(card_amount_to_usual=1.5, card_usual_amount=0.5), [online(0.0)], [], 5, "EUR"
    )
    assert len(reasons) == 1
    (reason,) = reasons
    assert reason.code == "AMOUNT_UNUSUAL_FOR_CARD"
    assert reason.sentence == "412.90 EUR is 6.3 times this card's usual 65.40 EUR."
    assert reason.usual == 65.4
    assert reason.contribution == 2.0


@pytest.mark.parametrize(
    ("values", "strongest", "code"),
    [
        ({"card_count_1h": 3, "card_count_30d": 30}, "card_count_1h", "CARD_BURST"),
        ({"card_count_1d": 5, "card_count_30d": 30}, "card_count_1d", "CARD_BURST"),
        ({"card_count_1d": 0, "card_seconds_since_last": 9e5}, "card_count_1d", "CARD_PATTERN"),
        ({"card_outlier_count_7d": 1}, "card_outlier_count_7d", "CARD_RECENT_OUTLIERS"),
        ({"card_outlier_count_7d": 0}, "card_outlier_count_7d", "CARD_PATTERN"),
        ({"card_merchant_count": 0}, "card_merchant_count", "CARD_NEW_TO_MERCHANT"),
        ({"card_merchant_count": 2}, "card_merchant_count", "CARD_KNOWN_AT_MERCHANT"),
        ({"hour": 3.5, "weekday": 6}, "hour", "UNUSUAL_HOUR"),
        ({"amount": 900}, "amount", "AMOUNT_HIGH"),
        ({"merchant_count_1d": 50, "merchant_count_30d": 60}, "merchant_surge", "MERCHANT_SURGE"),
        ({"merchant_count_1d": 1, "merchant_count_30d": 60}, "merchant_surge", "MERCHANT_PATTERN"),
        ({"merchant_count_7d": 5}, "merchant_count_7d", "MERCHANT_PATTERN"),
        (
            {"merchant_known_count_30d": 9, "merchant_known_fraud_30d": 4, "merchant_newest_label": 1},
            "merchant_newest_label",
            "MERCHANT_NEWEST_LABEL_FRAUD",
        ),
        (
            {"merchant_known_count_30d": 9, "merchant_known_fraud_30d": 4, "merchant_newest_label": 0},
            "merchant_known_fraud_30d",
            "MERCHANT_KNOWN_FRAUD",
        ),
        (fraud_run(0, 0, 0), "merchant_fraud_run_seconds", "MERCHANT_FRAUD_RUN"),
        (fraud_run(50, 0, 0), "merchant_unreported_since_fraud_2d", "MERCHANT_FRAUD_RUN"),
        (fraud_run(50, 2, 1), "merchant_unreported_since_fraud", "MERCHANT_KNOWN_FRAUD"),
        (fraud_run(0, 0, 0, days=1), "merchant_fraud_run_seconds", "MERCHANT_KNOWN_FRAUD"),
        ({"merchant_known_count_30d": 9}, "merchant_fraud_risk_30d", "MERCHANT_LABELS"),
        (
            {"amount": 90, "merchant_amount_to_mean": 3, "merchant_mean_30d": 30},
            "merchant_amount_to_mean",
            "AMOUNT_UNUSUAL_FOR_MERCHANT",
        ),
    ],
)
def test_codes_follow_from_values(values: dict[str, float], strongest: str, code: str) -> None:
    (reason,) = explain_row(row(**values), weights(**{strongest: 1.0}), [online(0.0)], [], 5, "EUR")
    assert reason.code == code
    assert reason.code in CODES
    assert reason.sentence.endswith(".")


def test_the_age_that_bears_a_run_out_is_in_the_sentence() -> None:
    def sentence(**values: float) -> str:
        (reason,) = explain_row(row(**values), weights(merchant_fraud_run_seconds=1.0), [online(0.0)], [], 5, "EUR")
        return reason.sentence

    text = "the present run began 10.0 days earlier, and none since that is {} days old lacks a report."
    assert sentence(**fraud_run(0, 0, 0)).endswith(text.format(2))
    assert sentence(**fraud_run(9, 0, 0)).endswith(text.format(7))
    # The run is younger than 14 days.
    assert "lacks a report" not in sentence(**fraud_run(9, 2, 0))
    assert sentence(**fraud_run(9, 2, 0, days=20)).endswith("none since that is 14 days old lacks a report.")


def test_frauds_are_known_of_what_is_old_enough_where_only_frauds_are_reported() -> None:
    def sentence(**values: float) -> str:
        (reason,) = explain_row(row(**values), weights(merchant_known_fraud_30d=1.0), [online(0.0)], [], 5, "EUR")
        return reason.sentence

    traffic = {"merchant_known_fraud_30d": 9, "merchant_count_30d": 33, "merchant_count_7d": 8}
    expected = "9 frauds known at this merchant in 30 days, which has 25 transactions of 7 to 30 days ago"
    assert sentence(merchant_known_count_30d=9, **traffic).startswith(expected)
    expected = "9 frauds known among 12 labelled transactions of 30 days at this merchant"
    assert sentence(merchant_known_count_30d=12, **traffic).startswith(expected)


def test_reasons_are_positive_largest_first_and_not_too_many() -> None:
    given = weights(amount=0.5, card_merchant_count=2.0, hour=-3.0, card_count_1h=1.0, merchant_count_7d=0.7)
    features = row(card_count_1h=4.0, card_count_30d=4.0)
    reasons = explain_row(features, given, [online(0.9, "hours below 4")], [], 3, "EUR")
    assert [reason.code for reason in reasons] == ["CARD_NEW_TO_MERCHANT", "CARD_BURST", "ONLINE_MODEL"]
    assert [reason.contribution for reason in reasons] == [2.0, 1.0, 0.9]
    assert "hours below 4" in reasons[2].sentence


def test_one_code_appears_once() -> None:
    given = weights(card_outlier_count_7d=0.4, card_count_7d=0.5)
    reasons = explain_row(row(), given, [online(0.0)], [], 5, "EUR")
    assert [(reason.code, reason.contribution) for reason in reasons] == [("CARD_PATTERN", 0.9)]


def test_what_is_in_words_is_all_that_is_more_than_noise() -> None:
    given = weights(amount=0.2500, hour=0.2499, card_merchant_count=0.28)
    reasons = explain_row(row(), given, [online(0.27)], [], 5, "EUR")
    assert [reason.contribution for reason in reasons] == [0.28, 0.27, 0.25]
    assert [reason.contribution for reason in explain_row(row(), given, [online(0.22)], [], 5, "EUR")] == [0.28, 0.25]


@pytest.mark.parametrize(("added", "code"), [(-0.4, "AMOUNT_HIGH"), (-0.3, "AMOUNT_HIGH"), (-0.2, "ONLINE_MODEL")])
def test_where_nothing_was_raised_the_largest_is_in_words(added: float, code: str) -> None:
    given = np.full(len(FEATURES), -1.0)
    given[[COLUMN["amount"], COLUMN["card_merchant_count"]]] = -0.3
    (reason,) = explain_row(row(), given, [online(added)], [], 5, "EUR")
    assert (reason.code, reason.contribution) == (code, max(added, -0.3))


def test_an_alert_always_has_a_reason() -> None:
    reasons = explain_row(row(), -np.ones(len(FEATURES)), [online(-1.0)], [], 5, "EUR")
    assert len(reasons) == 1
    empty = explain_row(np.full(len(FEATURES), np.nan), np.zeros(len(FEATURES)), [online(0.0)], [], 5, "")
    assert len(empty) == 1
    assert empty[0].value is None


def test_the_reasons_of_the_golden_alert_are_those_of_its_values() -> None:
    alert = msgspec.json.decode(GOLDEN.read_bytes(), type=Alert)
    given = weights(**{reason.feature: reason.contribution for reason in alert.reasons})
    features = row(amount=412.5, card_usual_amount=28.495, card_amount_to_usual=412.5 / 28.495)
    assert explain_row(features, given, [], [], 5, "EUR") == alert.reasons


def test_general_words_hold_for_every_feature() -> None:
    for features in (row(), np.full(len(FEATURES), np.nan)):
        facts = Facts(features, "EUR")
        for text in REASON_TEXTS:
            for name in text.features:
                wording = pattern(text, name, facts)
                assert wording.code in CODES
                assert MEANINGS[name] in wording.sentence
                assert wording.general


def test_no_sentence_names_a_feature_as_programs_do() -> None:
    generator = np.random.default_rng(5)
    named = [name for name in FEATURES if "_" in name]
    assert not [text for text in map(describe, range(len(INPUTS))) if "_" in text]
    for scale in (1.0, 30.0, 3e5):
        features = generator.exponential(scale, len(FEATURES))
        features[generator.random(len(FEATURES)) < 0.2] = np.nan
        for text in REASON_TEXTS:
            for name in text.features:
                for reason in explain_row(features, weights(**{name: 1.0}), [online(0.3)], [], 9, "EUR"):
                    assert not [leak for leak in named if leak in reason.sentence], reason.sentence
                    assert "e+" not in reason.sentence


@pytest.mark.parametrize(
    ("values", "strongest"),
    [
        ({"amount": 90, "card_usual_amount": 85, "card_amount_to_usual": 90 / 85}, "card_amount_to_usual"),
        ({"amount": 90, "merchant_mean_30d": 80, "merchant_amount_to_mean": 90 / 80}, "merchant_amount_to_mean"),
        ({"merchant_known_count_30d": 3}, "merchant_known_count_30d"),
        ({"card_count_1d": 3, "card_count_30d": 75, "card_seconds_since_last": 9e5}, "card_count_1d"),
        ({"merchant_count_1d": 30, "merchant_count_30d": 840}, "merchant_surge"),
    ],
)
def test_what_is_no_argument_gives_way_to_what_is(values: dict[str, float], strongest: str) -> None:
    features = row(hour=3.0, weekday=2, **values)
    both = explain_row(features, weights(**{strongest: 0.6, "hour": 0.5}), [online(0.0)], [], 5, "EUR")
    assert [reason.code for reason in both] == ["UNUSUAL_HOUR"]
    (alone,) = explain_row(features, weights(**{strongest: 0.6}), [online(0.0)], [], 5, "EUR")
    assert "resemble" in alone.sentence
    assert " times " not in alone.sentence
    strong = explain_row(features, weights(**{strongest: 1.5, "hour": 0.5}), [online(0.0)], [], 5, "EUR")
    assert [reason.contribution for reason in strong] == [1.5, 0.5]


def test_an_amount_in_another_currency_stands_beside_the_base_currency_s() -> None:
    features = row(amount=412.90, card_usual_amount=65.40, card_amount_to_usual=412.90 / 65.40)
    (reason,) = explain_row(features, weights(card_amount_to_usual=1.0), [online(0.0)], [], 5, "EUR", "450.00 USD")
    assert reason.sentence == "412.90 EUR (450.00 USD) is 6.3 times this card's usual 65.40 EUR."


def test_contributions_add_up_to_the_blend_s_log_odds() -> None:
    learner = LayerLearner()
    learner.learn_examples([example(i) for i in range(100)])
    layer, features = learner.snapshot(100), matrix(20, seed=8)
    logit = small_model().logit(features)
    many = Policy(0.5, blend=0.6, max_reasons=50)
    base = small_model().logit(features) - small_model().contributions(features).sum(axis=1)
    blended = 0.4 * logit + 0.6 * layer.logit(features, logit)
    nothing: dict[str, Any] = {}
    found = explain(features, logit, models(many, layer), ["score"] * 20, [()] * 20, nothing.__getitem__, "EUR")
    for i, reasons in enumerate(found):
        # The parts that lower the score are not in words: what is may only exceed the sum.
        assert sum(reason.contribution for reason in reasons) >= blended[i] - base[i] - 0.7 * (len(REASON_TEXTS) + 1)
        assert all(reason.contribution >= 0.25 for reason in reasons) or len(reasons) == 1


def test_rules_and_audits_come_first() -> None:
    rules = RuleSet(
        [
            rule("SMALL_HOURS", "hour >= 0 and country = 'DE' and ip is not null", reason="A house rule."),
            rule("TAGGED", "hour >= 0", action="tag"),
        ]
    )
    policy = Policy(0.5, audit_rate=0.1, max_reasons=2)
    features = matrix(40)
    selections = ["audit", *["rule"] * 39]
    logit, hits = small_model().logit(features), [(0, 1)] * 40
    columns: dict[str, Any] = {
        "hour": features[:, COLUMN["hour"]],
        "country": ["DE", *"D" * 38, "D" * 41],
        "ip": ["10.0.0.1"] * 40,
    }
    read = columns.__getitem__
    by_audit, *by_rule = explain(features, logit, models(policy, rules=rules), selections, hits, read, "EUR")
    hours = [str(round(hour, 4)).removesuffix(".0") for hour in features[:, COLUMN["hour"]].tolist()]
    assert by_audit[0].sentence == f"A house rule (hour {hours[0]}, country DE)."
    assert by_rule[0][0].sentence == f"A house rule (hour {hours[1]}, country D)."
    assert by_rule[-1][0].sentence == f"A house rule (hour {hours[-1]}, country {'D' * 40}...)."
    assert all(found[0].code == "SMALL_HOURS" for found in by_rule)
    values = [(found[0].feature, found[0].value) for found in by_rule]
    assert values == [("hour", round(hour, 4)) for hour in features[1:, COLUMN["hour"]].tolist()]
    assert [reason.code for reason in by_audit] == ["SMALL_HOURS", "AUDIT_SAMPLE"]
    assert max(map(len, by_rule)) == 2
