"""Worlds have what the example rules read, and the page has a row for each rule."""

import re

from pipeline.backtest.metrics.rule_worth import RuleWorth
from tests.evaluation.worlds.example_rules import table, world
from tests.evaluation.worlds.families import CHOOSING
from tests.evaluation.worlds.population import Size
from tests.helpers.documents import ROOT


def test_merchants_of_a_world_have_codes_channels_and_countries() -> None:
    frame = world(CHOOSING[0], Size(300, 900, 10))
    by_merchant = frame.groupby("merchant_id")[["mcc", "channel", "country"]].nunique(dropna=False)
    assert (by_merchant == 1).all(axis=None)
    assert set(frame["mcc"]) >= {"5411", "5816"}
    online = frame["channel"] == "web"
    assert 0.05 < online.mean() < 0.5
    assert (frame["country"].isna() == online).all()
    assert frame["country"].nunique() == 4


def test_the_table_adds_up_what_rules_find_alone() -> None:
    one = RuleWorth(
        code="a", state="active", action="alert", owner="x", since=None, hits=1_200, mature=1_200, frauds=7, money=9.0,
        frauds_alone=2, money_alone=1_000.4, false_alone=3,
    )  # fmt: skip
    assert table({"first": [one], "second": [one]}).lines[2] == "| `a` | 1,200 / 7 | 1,200 / 7 | 4 | 2,001 | 6 |"


def test_the_page_has_a_row_for_each_example() -> None:
    page = (ROOT / "docs/rules.md").read_text(encoding="utf-8").split("## The examples, measured")[1].split("\n## ")[0]
    assert sorted(re.findall(r"^\| `([\w-]+)` \|", page, re.MULTILINE)) == sorted(
        path.stem for path in (ROOT / "examples/rules").glob("*.sql")
    )
