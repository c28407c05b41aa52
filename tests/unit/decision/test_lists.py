"""Lists: which entries hold, what overrules what, and rules that read them, as DuckDB reads a table."""

import os
import re
from collections.abc import Sequence
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.decision.lists import NO_LISTS, Listed, ListSet, check_definition, covered, entry_id, normal_value
from pipeline.decision.policy import Policy
from pipeline.decision.rule_program import RuleProgram
from pipeline.decision.rules import NO_RULES, RuleSet
from pipeline.expressions.evaluate import evaluate
from pipeline.expressions.parse import parse_expression
from pipeline.expressions.trees import ExpressionError, check_tree, lists_in, text_of
from pipeline.scoring.errors import ModelError
from tests.helpers.champion import rule
from tests.helpers.expressions import FIELDS, columns_of, conditions, many_rows
from tests.helpers.lists import definition, entry, lists_of

EXAMPLES = int(os.environ.get("LIST_EXAMPLES", "200"))
RULES = RuleSet(
    [rule("a", "amount > 0"), rule("b", "amount > 0", severity="low"), rule("t", "amount > 0", action="tag")]
)
ALL = tuple(range(3))
EACH, THREE = ("score", "a", "b"), ("stolen", "quiet", "trusted")
A_QUIET = ("quiet-rules/ID", ("a",))


def held(lists: ListSet, name: str, texts: Sequence[str | None], at_us: int) -> list[float | None]:
    field = lists.definitions[name].field
    truth = lists.truth(
        ("in", ("field", field), ("list", name)), {field: texts}.__getitem__, np.full(len(texts), at_us)
    )
    return [None if np.isnan(each) else float(each) for each in truth]


def test_an_entry_holds_for_what_happened_before_its_expiry() -> None:
    lists = lists_of([definition("home")], [entry("home", "DE", 100), entry("home", "FR")])
    assert held(lists, "home", ["DE", "FR", "IT", None], 99) == [1, 1, 0, None]
    assert held(lists, "home", ["DE", "FR", "IT", None], 100) == [0, 1, 0, None]
    test = ("in", ("field", "country"), ("list", "unknown"))
    truth = lists.truth(test, {"country": ["DE", None]}.__getitem__, np.zeros(2, np.int64))
    assert (truth[0], np.isnan(truth[1])) == (0.0, True)


def test_networks_and_prefixes_hold_as_long_as_their_longest_entry() -> None:
    lists = lists_of(
        [definition("nets", field="ip", match="cidr"), definition("bins", field="card_id", match="prefix")],
        [
            entry("nets", "192.0.2.0/24", 100), entry("nets", "192.0.2.7/32", 200), entry("nets", "2001:db8::/32"),
            entry("bins", "41", 100), entry("bins", "4111"),
        ],
    )  # fmt: skip
    addresses = ["192.0.2.1", "192.0.2.7", "192.0.3.1", "2001:db8::1", "no address", "", None, "::ffff:192.0.2.1"]
    assert held(lists, "nets", addresses, 50) == [1, 1, 0, 1, 0, 0, None, 1]
    assert held(lists, "nets", addresses, 150) == [0, 1, 0, 1, 0, 0, None, 0]
    assert held(lists, "bins", ["4111222", "4122", "42", "4"], 50) == [1, 1, 0, 0]
    assert held(lists, "bins", ["4111222", "4122", "42", "4"], 150) == [1, 0, 0, 0]
    assert normal_value(lists.definitions["nets"], "192.0.2.77/24") == "192.0.2.0/24"
    assert normal_value(lists.definitions["nets"], "::ffff:192.0.2.77/120") == "192.0.2.0/24"
    with pytest.raises(ModelError, match="an entry that is none"):
        lists_of([definition("nets", field="ip", match="cidr")], [entry("nets", "x")])
    for value in ("192.0.2.0/33", "x"):
        with pytest.raises(ModelError, match="no network"):
            normal_value(lists.definitions["nets"], value)
    for value in ("", " a", "a\n", "a" * 257):
        with pytest.raises(ModelError, match="1 to 256 characters"):
            normal_value(lists.definitions["bins"], value)


def test_a_change_leaves_the_lists_before_it_as_they_were() -> None:
    first = lists_of([definition("home")], [entry("home", "DE")])
    second = lists_of([definition("bad", "block", "card_id")], [entry("home", "FR"), entry("bad", "c1")], first)
    assert held(first, "home", ["DE", "FR"], 0) == [1, 0]
    assert held(second, "home", ["DE", "FR"], 0) == [1, 1]
    assert (len(first), len(second), [*first.definitions], [*second.definitions]) == (1, 3, ["home"], ["home", "bad"])
    assert len({NO_LISTS.version, first.version, second.version}) == 3
    with pytest.raises(ModelError, match="list 'none', which there is not"):
        lists_of([], [entry("none", "x")])


@pytest.mark.parametrize(
    ("lists", "selection", "probability", "listed"),
    [
        ("", "score", 1.0, Listed()),
        ("watched", "score", 1.0, Listed(("watched",))),
        ("trusted", "audit", 0.5, Listed(("trusted",), (("trusted", EACH),))),
        ("quiet trusted", "audit", 0.5, Listed(("quiet", "trusted"), (("quiet/ID", EACH),))),
        ("stolen", "list", 1.0, Listed(("stolen",))),
        ("stolen quiet trusted", "list", 1.0, Listed(THREE, (("stolen", ("quiet/ID", "trusted")),))),
        ("quiet-rules", "score", 1.0, Listed((), (A_QUIET,))),
        ("quiet-rules trusted", "audit", 0.5, Listed(("trusted",), (A_QUIET, ("trusted", ("score", "b"))))),
    ],
)  # fmt: skip
def test_block_lists_come_before_suppressions_allow_lists_rules_and_score(
    lists: str, selection: str, probability: float, listed: Listed
) -> None:
    kinds = {"stolen": "block", "quiet": "suppress", "trusted": "allow", "watched": "watch"}
    names = [name for name in lists.split() if name in kinds]
    entries = [entry(name, "DE") for name in names]
    definitions = [definition(name, kinds[name]) for name in names]
    if "quiet-rules" in lists:
        definitions.append(definition("quiet-rules", "suppress", "rule"))
        entries.append(entry("quiet-rules", "a"))
    made = lists_of(definitions, entries)
    hits = np.empty(2, np.object_)
    hits[:] = [ALL, ()]

    outcome = made.apply(RULES, hits, np.array([True, False]), {"country": ["DE", None]}, np.zeros(2, np.int64))

    policy, score = Policy(0.5, audit_rate=0.5), np.array([0.9, 0.1])
    identity = np.array([0, 2**64 - 1], np.uint64)
    drawn = policy.decide(score, np.empty((2, 0)), identity, np.zeros(2, np.bool_), quiet=np.ones(2, np.bool_))
    sampled = drawn.selection[0] == "audit"
    matched = RULES.alerts(outcome.left)
    decided = policy.decide(score, np.empty((2, 0)), identity, matched, outcome.blocked, outcome.quiet)
    assert decided.selection[0] == (selection if selection != "audit" or sampled else None)
    assert decided.selection_probability[0] == probability
    ids = {f"{each.list}/{entry_id(each)}": f"{each.list}/ID" for each in entries}
    found = outcome.listed[0]
    shown = tuple((ids.get(by, by), tuple(ids.get(name, name) for name in what)) for by, what in found.overruled)
    assert Listed(found.names, shown) == listed
    assert (outcome.listed[1], decided.selection[1] in (None, "audit")) == (Listed(), True)


def test_a_suppressed_rule_leaves_the_other_rules() -> None:
    made = lists_of([definition("quiet", "suppress", "rule")], [entry("quiet", "a", 100), entry("quiet", "t")])
    hits = np.empty(3, np.object_)
    hits[:] = [(0,), (0, 1), (0,)]
    outcome = made.apply(RULES, hits, np.zeros(3, np.bool_), {}, np.array([99, 99, 100]))
    assert outcome.left.tolist() == [(), (1,), (0,)]
    by = f"quiet/{entry_id(entry('quiet', 'a', 100))}"
    assert [each.overruled for each in outcome.listed] == [((by, ("a",)),), ((by, ("a",)),), ()]


def test_nothing_alerts_less_where_nothing_is_listed() -> None:
    made = lists_of([definition("home", "allow")], [entry("home", "DE")])
    hits = np.empty(1, np.object_)
    hits[:] = [()]
    outcome = made.apply(NO_RULES, hits, np.array([True]), {"country": ["FR"]}, np.zeros(1, np.int64))
    assert outcome.quiet is not None
    assert (outcome.quiet.tolist(), outcome.listed.tolist()) == ([False], [Listed()])


def test_a_list_says_what_it_is() -> None:
    for wrong, text in (
        (definition("Home"), "the name of a list is a lower-case letter .* not 'Home'"),
        (definition("a/b"), "not 'a/b'"),
        (definition(""), "not ''"),
        (definition("a", "deny"), "kind of list 'a' is one of block, suppress, allow, watch"),
        (definition("a", match="regex"), "match of list 'a' is one of text, prefix, cidr"),
        (definition("a", "allow", "rule"), "it can only suppress them"),
        (definition("a", "suppress", "ip", "cidr"), "use the match text"),
    ):
        with pytest.raises(ModelError, match=text):
            check_definition(wrong)


def test_entries_cover_their_common_share_of_the_traffic() -> None:
    traffic = {"192.0.2.1": 3, "192.0.2.9": 1, "198.51.100.1": 5, None: 1}
    nets = ["192.0.2.0/24", "192.0.2.9/32", "203.0.113.0/24"]
    for match, values, share in (
        ("cidr", nets, 0.4),
        ("cidr", nets[1:], 0.1),
        ("prefix", ["19", "192"], 0.9),
        ("text", ["192.0.2.1", "198.51.100.1", "x"], 0.8),
    ):
        assert covered(definition("n", field="ip", match=match), values, traffic) == share
    assert covered(definition("n", field="ip"), ["x"], {}) == 0.0


LIST_TESTS = st.sampled_from(["channel", "country"]).map(lambda name: ["in", ["field", name], ["list", "home"]])
IN_CASE = LIST_TESTS.map(lambda test: ["=", ["case", test, ["text", "a"], ["text", "b"]], ["text", "a"]])
WITH_LISTS = st.recursive(
    st.one_of(LIST_TESTS, IN_CASE, conditions),
    lambda inner: st.one_of(
        st.tuples(st.just("not"), inner).map(list),
        st.tuples(st.sampled_from(["and", "or"]), inner, inner).map(list),
    ),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def connection() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.execute("set ieee_floating_point_ops=false; set error_on_division_by_zero=false; set threads=1")
    return connection


def as_table(sql: str) -> str:
    """Write a list as a table: NULL where the field is missing, also of a list without entries that hold."""
    sql = re.sub(
        r"(\w+)( not)? in list\('home'\)",
        r"(case when \1 is null then null else \1\2 in (select value from home where until_us > event_us) end)",
        sql,
    )
    return re.sub(r"('(?:[^']|'')*')|(?<![\w])(\d[\d.]*(?:e[+-]?\d+)?)", lambda m: m[1] or f"{m[2]}::double", sql)


@settings(max_examples=EXAMPLES)
@given(
    data=WITH_LISTS,
    drawn=many_rows,
    home=st.dictionaries(st.sampled_from(["web", "app", "a_b", "Émile", ""]), st.integers(0, 12), max_size=4),
)
def test_rules_read_lists_as_duckdb_reads_a_table(
    connection: duckdb.DuckDBPyConnection, data: object, drawn: list[tuple[object, ...]], home: dict[str, int]
) -> None:
    tree = check_tree({"grammar": 1, "tree": data}, FIELDS, lists=True)
    assert check_tree(tree.data(), FIELDS, lists=True) == tree
    assert check_tree(parse_expression(text_of(tree), FIELDS, lists=True).data(), FIELDS, lists=True).root is not None
    names = ("channel", "country")
    # An empty text is no entry; the table of the reference leaves it out too.
    entries = {value: until for value, until in home.items() if value}
    lists = lists_of([definition("home")], [entry("home", value, until) for value, until in entries.items()])
    columns: dict[Any, Any] = columns_of(drawn)
    event_us = np.arange(len(drawn))
    texts = {name: columns[name].to_pylist() for name in names}

    tests = {test: lists.truth(test, texts.__getitem__, event_us) for test in lists_in(tree)}
    read = {**columns, **texts, **tests}
    found = RuleProgram([tree], FIELDS).hits(read.__getitem__, len(drawn))[0].tolist()

    table = pa.table(
        {**{name: pa.array(values, from_pandas=True) for name, values in columns.items()}, "event_us": event_us}
    )
    connection.register("transactions", table)
    held = pa.table({"value": pa.array([*entries], pa.string()), "until_us": pa.array([*entries.values()], pa.int64())})
    connection.register("home", held)
    sql = f"select coalesce(({as_table(text_of(tree))}), false) from transactions order by event_us"
    assert found == [row[0] for row in connection.execute(sql).fetchall()], text_of(tree)
    assert found == evaluate(tree, {**columns, **tests}, len(drawn)).tolist(), text_of(tree)


@pytest.mark.parametrize(
    ("text", "position", "part"),
    [
        ("country in list('a', 'b')", 21, "a list stands alone"),
        ("country = list('a')", 10, "behind in"),
        ("list('a')", 0, "behind in"),
        ("country in list(channel)", 11, "behind in"),
        ("lower(country) in list('a')", 23, "a list stands alone"),
        ("amount in list('a')", 15, "the same kind"),
        ("amount > 1 and country in ('x', list('a'))", 32, "behind in"),
    ],
)
def test_a_list_stands_behind_a_field_and_in(text: str, position: int, part: str) -> None:
    with pytest.raises(ExpressionError, match=part) as refused:
        parse_expression(text, FIELDS, lists=True)
    assert refused.value.position == position


def test_features_and_audits_read_no_lists() -> None:
    with pytest.raises(ExpressionError, match="lists are for rules only"):
        parse_expression("country in list('home')", FIELDS)
    with pytest.raises(ExpressionError, match="lists are for rules only"):
        check_tree({"grammar": 1, "tree": ["in", ["field", "country"], ["list", "home"]]}, FIELDS)
