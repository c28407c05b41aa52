"""The worth of rules and lists, compared with its definition row by row, in a report's readings."""

import json

import numpy as np
import pytest

from pipeline.backtest.metrics.rule_worth import RuleHits, RuleWorth, rule_worth
from pipeline.backtest.report import ReportOptions, build_report
from pipeline.backtest.runner.result import Overruled
from tests.helpers.backtests import result
from tests.helpers.champion import rule

ROWS = 400
RULES = [
    rule("first", "amount > 1"),
    rule("second", "amount > 2", owner="dana"),
    rule("tagging", "amount > 3", action="tag"),
    rule("tried", "amount > 4", state="shadow"),
    rule("idle", "amount > 5"),
]
SINCE = {("first", "active"): "2024-03-01T00:00:00Z", ("tried", "active"): "2024-04-01T00:00:00Z"}


def test_what_a_rule_finds_alone_is_what_no_score_and_no_other_active_rule_alerted() -> None:
    rng = np.random.default_rng(4)
    hit = rng.random((ROWS, len(RULES))) < [0.2, 0.15, 0.1, 0.2, 0.0]
    by_score, fraud, mature = (rng.random(ROWS) < share for share in (0.3, 0.4, 0.7))
    amount = np.round(rng.gamma(2.0, 40.0, ROWS), 2)
    worth = rule_worth(RuleHits(RULES, *np.nonzero(hit)), by_score, fraud, mature, amount, SINCE)
    found = {each.code: each for each in worth}
    for number, each in enumerate(RULES):
        others = [at for at in (0, 1, 4) if at != number]
        rows = [row for row in range(ROWS) if hit[row, number] and mature[row]]
        alone = [row for row in rows if not by_score[row] and not hit[row, others].any()]
        frauds = [row for row in rows if fraud[row]]
        frauds_alone = [row for row in alone if fraud[row]]
        assert found[each.code] == RuleWorth(
            code=each.code,
            state=each.state,
            action=each.action,
            owner=each.owner,
            since=SINCE.get((each.code, each.state)),
            hits=int(hit[:, number].sum()),
            mature=len(rows),
            frauds=len(frauds),
            money=round(float(amount[frauds].sum()), 2),
            frauds_alone=len(frauds_alone),
            money_alone=round(float(amount[frauds_alone].sum()), 2),
            false_alone=len(alone) - len(frauds_alone),
        )
    assert found["first"].frauds_alone > 0
    assert [code for code, each in found.items() if each.earns_nothing] == ["idle"]
    assert worth == sorted(worth, key=lambda each: -each.money_alone)


def test_a_report_has_the_rules_and_names_those_that_earn_nothing() -> None:
    made = result(rows=60)
    (variant,) = made.variants
    by_score = np.flatnonzero(variant.decisions["selection"] == "score")
    rows, numbers = np.r_[np.arange(60), by_score], np.r_[np.zeros(60, np.int64), np.full(len(by_score), 4)]
    object.__setattr__(variant, "rules", RuleHits(RULES, rows, numbers))
    object.__setattr__(made, "rules_since", SINCE)
    report = build_report(made, ReportOptions(replicates=0))
    first, *others = json.loads(report.json)["variants"][0]["rules"]
    assert (first["code"], first["hits"], first["since"]) == ("first", 60, "2024-03-01T00:00:00Z")
    assert first["frauds"] > first["frauds_alone"] > 0
    assert {each["code"] for each in others} == {"second", "tagging", "tried", "idle"}
    for reading in (report.html, report.text.replace("\n", " ")):
        assert "Rules that find no fraud that nothing else finds: idle, second." in reading
    assert '<section id="rules"' in report.html
    assert '<section id="rules"' not in build_report(result(rows=60), ReportOptions(replicates=0)).html


def test_frauds_are_missed_where_what_was_overruled_got_no_alert_otherwise() -> None:
    made = result(rows=300)
    (variant,) = made.variants
    rng, names = np.random.default_rng(5), ["quiet/1", "good", "calm/2"]
    hit = rng.random((300, len(names))) < [0.5, 0.3, 0.2]
    object.__setattr__(variant, "overruled", Overruled(names, *np.nonzero(hit)))
    amount, alert = variant.decisions["amount_base"], variant.decisions["action"].eq("alert")
    known = made.labels.loc[made.labels["label"].eq("fraud"), "transaction_id"]
    fraud = variant.decisions["transaction_id"].isin(known)
    report = build_report(made, ReportOptions(replicates=0))
    found = json.loads(report.json)["variants"][0]["overruled"]
    for each in found:
        rows = hit[:, names.index(each["name"])]
        missed = rows & fraud & ~alert
        assert 0 < missed.sum() < (rows & fraud).sum(), "some got an alert"
        assert each["hits"] == rows.sum()
        assert (each["amount"], each["frauds"]) == (pytest.approx(amount[rows].sum()), missed.sum())
        assert each["fraud_amount"] == pytest.approx(amount[missed].sum())
    assert sorted(each["name"] for each in found) == sorted(names)
    assert found == sorted(found, key=lambda each: -each["fraud_amount"])
    first = found[0]
    costs = f"{first['hits']} hits, {first['frauds']} frauds missed of {first['fraud_amount']:,.2f}; "
    assert f"Overruled by {first['name']} {costs}" in report.text.replace("\n", " ")
    table = report.html.partition('<section id="overruled"')[2].partition("</section>")[0]
    assert [f'<th scope="row" class="text">{each["name"]}</th>' in table for each in found] == [True] * 3
