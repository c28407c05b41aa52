"""A set of rules: what it refuses, and what its hits do."""

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from pipeline.decision.rules import FIELDS, MOST_HITS, MOST_RULES, PolicyRule, RuleSet, adopted, joined, names_read
from pipeline.expressions.parse import parse_expression
from pipeline.scoring.errors import ModelError
from tests.helpers.champion import rule

COLUMNS = {"amount": np.array([1.0, 10.0, 100.0]), "country": ["DE", None, "FR"], "score": np.array([0.1, 0.2, 0.3])}


def codes(rules: RuleSet) -> list[tuple[list[str], list[str]]]:
    return [rules.named(numbers) for numbers in rules.hits(COLUMNS.__getitem__, 3)]


def test_states_and_actions_decide_what_a_hit_does() -> None:
    rules = RuleSet(
        [
            rule("any", "amount > 0", action="tag"),
            rule("draft", "amount > 0", state="draft"),
            rule("abroad", "country <> 'DE' and score > 0.2"),
            rule("large", "amount >= 10", severity="critical"),
            rule("watched", "amount >= 10", state="shadow", severity="critical"),
        ]
    )

    assert codes(rules) == [(["any"], []), (["large", "any"], ["watched"]), (["large", "abroad", "any"], ["watched"])]
    assert rules.alerts(rules.hits(COLUMNS.__getitem__, 3)).tolist() == [False, True, True]
    assert rules.texts == ("country",)


def test_a_decision_names_twenty_hits_at_most() -> None:
    rules = RuleSet([rule(f"r{number:03}", "amount > 0", state="shadow") for number in range(30)])
    rules = rules.with_rules(*(rule(f"a{number:03}", "amount > 0") for number in range(15)))

    active, shadow = codes(rules)[0]

    assert active == [f"a{number:03}" for number in range(15)]
    assert shadow == [f"r{number:03}" for number in range(MOST_HITS - 15)]


def test_a_code_has_one_version_that_acts_and_one_that_does_not() -> None:
    first, edited = rule("a", "amount > 1"), rule("a", "amount > 2", state="shadow")
    both = RuleSet([first]).with_rules(edited)

    assert [each.state for each in both.rules] == ["active", "shadow"]
    assert (both.find("a", active=True), both.find("a", active=False)) == (first, edited)
    assert both.with_rules(replace(edited, state="draft")).rules == (first, replace(edited, state="draft"))
    assert both.without("a", candidate=False).rules == (edited,)
    assert both.without("a", active=False).rules == (first,)
    assert both.without("a").rules == ()


def test_equal_sets_have_one_version() -> None:
    rules = [rule("b", "amount > 1"), rule("a", "country = 'DE'", state="draft")]
    made = RuleSet(rules)

    assert made.version == RuleSet(rules[::-1]).version == RuleSet.from_payload(made.payload).version
    assert RuleSet.from_payload(made.payload).rules == made.rules
    assert names_read(made.payload) == {"amount"} - {"amount"}
    assert names_read(RuleSet([rule("c", "hour < 5 and card_count_1h > score")]).payload) == {"hour", "card_count_1h"}


@pytest.mark.parametrize(
    ("rules", "complaint"),
    [
        ([rule("a", "amount > 1"), rule("a", "amount > 2")], "two rules have the code 'a'"),
        ([rule("a", "amount > 1", state=state) for state in ("draft", "shadow")], "two rules have the code 'a'"),
        ([rule("", "amount > 1")], "1 to 100 characters"),
        ([rule("a\nb", "amount > 1")], "on one line"),
        ([rule("a" * 101, "amount > 1")], "1 to 100 characters"),
        ([rule("a", "amount > 1", owner=" ")], "rule 'a' needs its owner"),
        ([rule("a", "amount > 1", reason="x" * 1_001)], "needs its reason, in at most 1,000"),
        ([rule("a", "amount > 1", reason="One.\u2028Two.")], "the reason of rule 'a' has a control character"),
        ([rule("a", "amount > 1", owner="dana\x1b[2J")], "the owner of rule 'a' has a control character"),
        ([rule("a.sql", "amount > 1")], "the code 'a.sql' would be taken for a file or an option"),
        ([rule("--yes", "amount > 1")], "the code '--yes' would be taken for a file or an option"),
        ([rule("a", "amount > 1", tree={"grammar": 2, "tree": []})], "rule 'a': grammar 2 is unknown"),
        ([rule("a", "amount > 1", tree={"grammar": 1, "tree": ["field", "amount"]})], "amount is a number"),
        ([rule(f"r{number}", "amount > 1") for number in range(MOST_RULES + 1)], "at most 1000 rules"),
    ],
)
def test_sets_that_make_no_sense_are_refused(rules: list, complaint: str) -> None:
    with pytest.raises(ModelError, match=complaint):
        RuleSet(rules)


def test_parts_of_a_set_are_bounded_and_equal_ones_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.decision.rules.MOST_STEPS", 6)
    RuleSet([rule(f"r{number}", "amount > 1 and amount > 2") for number in range(9)])
    with pytest.raises(ModelError, match="the rules have 8 parts, and may have 6"):
        RuleSet([rule("a", "amount > 1 and amount > 2"), rule("b", "amount > 3")])


def test_a_rule_of_an_unknown_state_or_feature_is_refused_on_reading() -> None:
    payload = RuleSet([rule("a", "amount > 1")]).payload
    for old, new in ((b'"active"', b'"asleep"'), (b'"field","amount"', b'"field","missing"'), (b'"rules",', b'"x",')):
        with pytest.raises(ModelError):
            RuleSet.from_payload(payload.replace(old, new, 1))


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
def test_a_policy_s_rules_do_as_before_until_the_set_has_their_code(op: str, expected: list[bool]) -> None:
    olds = (PolicyRule(code="X", feature="amount", op=op, value=2.0, sentence="X."),)
    amounts = {"amount": np.array([1.0, 2.0, 3.0, np.nan])}
    tags = RuleSet([rule("tag", "amount > 2", action="tag")])
    both = joined(tags, olds)

    assert both.alerts(both.hits(amounts.__getitem__, 4)).tolist() == expected
    assert both.version == tags.version
    assert [each.code for each in joined(RuleSet([rule("X", "amount > 2")]), olds).evaluated] == ["X"]
    (moved,) = adopted(olds, "dana")
    assert RuleSet([msgspec.json.decode(msgspec.json.encode(moved), type=type(moved))]).rules == (moved,)


def test_old_rules_get_codes_and_sentences_that_a_set_can_have() -> None:
    long, ends = "x" * 100, "".join(map(chr, (7, 0x2028)))
    cut = f"{long[:96]}.sql"
    codes = ["A", "A", " A ", "A-2", "b.sql", f"- {ends}", long, long, "n\u00a0o", "A", "--.sql", f"{cut} and more"]
    olds = [
        PolicyRule(code=code, feature="amount", op=">", value=float(at), sentence=f"One.{ends}Two." if at else " ")
        for at, code in enumerate(codes)
    ]

    moved = adopted(olds, "dana")

    assert RuleSet(moved).rules
    assert [each.code for each in moved] == [
        *("A", "A-2", "A-3", "A-2-2", "b-sql", "rule", long, f"{long[:96]}-2", "n o", "A-4", "sql", f"{long[:96]}-sql"),
    ]
    assert [each.reason for each in moved[:2]] == ["Rule A.", "One.  Two."]
    assert [each.tree["tree"][2][1] for each in moved] == [float(at) for at in range(len(olds))]
    # A set that has them already evaluates none of them twice.
    assert len(joined(RuleSet(moved), tuple(olds)).evaluated) == len(olds)


def test_a_rule_has_one_condition_whatever_text_comes_with_it() -> None:
    payload = RuleSet([rule("a", "amount > 1")]).payload.replace(b'"code"', b'"expression":"amount > 2","code"')
    (read,) = RuleSet.from_payload(payload).rules

    assert read.expression == "amount > 1"
    assert rule("a", "amount  >  1").meaning == read.meaning != rule("a", "amount > 2").meaning


def test_names_are_read_of_trees_that_nobody_has_checked() -> None:
    tree = {"grammar": 1, "tree": ["and", ["field", ["x"]], ["field", "own"], ["field"], "x", 5]}
    payload = RuleSet([rule("a", "amount > 1")]).payload
    odd = msgspec.json.encode(tree)
    made = payload.replace(msgspec.json.encode(parse_expression("amount > 1", FIELDS).data()), odd)

    assert made != payload
    assert names_read(made) == {"own"}
