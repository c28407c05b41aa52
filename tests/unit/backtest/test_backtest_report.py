"""The report of a backtest: its figures, its page, its JSON and its summary."""

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from pipeline.backtest.labels.schedule import LabelMode, ReviewOutcome
from pipeline.backtest.metrics.bootstrap import ConfidenceInterval
from pipeline.backtest.metrics.cost_model import from_alert_on
from pipeline.backtest.metrics.drift import ModelDrift
from pipeline.backtest.metrics.ranking import top_of_days
from pipeline.backtest.report import BacktestReport, ReportOptions, build_report, plots
from pipeline.backtest.report.content import Metric
from pipeline.backtest.report.svg import COLOURS, QUIET_INK
from pipeline.backtest.report.wording import headline
from pipeline.backtest.runner.result import BacktestResult, Variant
from pipeline.backtest.runner.thresholds import BUDGET
from pipeline.decision.budget import case_numbers
from pipeline.features.catalogue import FEATURES
from pipeline.scoring.distributions import BinCounter, distributions_of
from tests.helpers.backtests import DAY_US, DAYS, FROM_US, HOSTILE, result
from tests.helpers.colours import contrast

QUICK = ReportOptions(replicates=30, top=5)
VOID = frozenset({"meta", "br", "hr", "img", "link", "input"})


def quick(result: BacktestResult) -> BacktestReport:
    return build_report(result, QUICK)


def by_name(metrics: Iterable[Metric]) -> dict[str, Any]:
    return {metric.name: metric.value for metric in metrics}


class Page(HTMLParser):
    """What a page is made of; an element that is closed out of turn is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None], tuple[str, ...]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), tuple(self.open)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert "svg" in self.open, f"<{tag}/> closes nothing outside of SVG"
        self.elements.append((tag, dict(attrs), tuple(self.open)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data.strip()))

    def all(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes, _ in self.elements if tag in tags]


def test_figures_are_those_of_the_rows() -> None:
    given = result()
    frame = given.variants[0].decisions
    frauds = set(given.labels.loc[given.labels["label"] == "fraud", "transaction_id"])
    fraud = frame["transaction_id"].isin(frauds).to_numpy()
    alert, score = (frame["action"] == "alert").to_numpy(), frame["score"].to_numpy()
    amount = frame["amount_base"].to_numpy()
    times, card = given.event_time_us, pd.factorize(frame["card_id"])[0]
    caught = from_alert_on(alert[fraud], card[fraud], times[fraud], 14 * DAY_US)
    found = by_name(quick(given).content.variants[0].metrics)
    assert found["auc_roc"] == pytest.approx(roc_auc_score(fraud, score))
    assert found["average_precision"] == pytest.approx(average_precision_score(fraud, score))
    assert found["alert_precision"] == pytest.approx(fraud[alert].mean())
    assert found["alert_recall"] == pytest.approx(alert[fraud].mean())
    assert found["alerts_per_day"] == pytest.approx(alert.sum() / DAYS)
    cases = set(case_numbers(card.astype(np.int64), times)[alert].tolist())
    assert found["cases_per_day"] == pytest.approx(len(cases) / DAYS)
    assert len(cases) < alert.sum()
    assert found["fraud_amount"] == pytest.approx(amount[fraud].sum())
    assert found["caught_amount"] == pytest.approx(amount[fraud][caught].sum())
    assert found["missed_amount"] == pytest.approx(amount[fraud][~caught].sum())
    assert found["net_saving"] == pytest.approx(amount[fraud][caught].sum() - 5.0 * alert.sum())


def test_parts_add_up_to_the_whole() -> None:
    content = quick(result()).content
    variant = content.variants[0]
    for slices in (variant.days, variant.amounts):
        assert sum(part.transactions for part in slices) == content.transactions
        assert sum(part.frauds for part in slices) == content.labels.frauds
        assert sum(part.labelled for part in slices) == content.labels.frauds + content.labels.legitimate
        assert sum(part.alerts for part in slices) == sum(variant.selections.values())
    assert len(variant.days) == DAYS
    for bins in (variant.scores, variant.calibration):
        assert all(part.from_score <= part.mean_score <= part.to_score for part in bins if part.mean_score is not None)
        assert sum(part.frauds for part in bins) == content.labels.frauds
        assert sum(part.legitimate for part in bins) == content.labels.legitimate + content.labels.unlabelled
    assert sum(kind.frauds for kind in variant.fraud_types) == content.labels.frauds
    assert {kind.fraud_type for kind in variant.fraud_types} == {"amount", "card"}
    labels = content.labels
    assert labels.frauds + labels.legitimate + labels.unlabelled == content.transactions
    assert labels.median_delay_days == pytest.approx(2.0)
    assert {source.source: source.frauds for source in labels.sources} == {"analyst": 0, "chargeback": labels.frauds}


def test_intervals_hold_the_figure_and_repeat_by_their_seed() -> None:
    given = result()
    options = ReportOptions(replicates=200, top=5, seed=1)
    report, again = (build_report(given, options) for _ in range(2))
    assert report.json == again.json
    for metric in report.content.variants[0].metrics:
        assert metric.by_days is not None
        assert metric.by_days.low <= metric.value <= metric.by_days.high, metric.name
        assert metric.by_days.low < metric.by_days.high, metric.name
        assert (metric.by_cards is None) == metric.name.endswith(("at_k", "_kept"))
    assert build_report(given, ReportOptions(replicates=200, top=5, seed=2)).json != report.json


SLICE_FIGURES = {
    "alert_precision", "alert_recall", "precision_at_k", "recall_at_k", "caught_amount", "missed_amount",
}  # fmt: skip


def test_slices_are_measured_as_their_rows_are() -> None:
    given = result(rows=900)
    content = quick(given).content
    frame = given.variants[0].decisions
    frauds = given.labels.loc[given.labels["label"] == "fraud"].set_index("transaction_id")["fraud_type"]
    fraud = frame["transaction_id"].isin(frauds.index).to_numpy()
    alert, amount = (frame["action"] == "alert").to_numpy(), frame["amount_base"].to_numpy()
    days = frame["event_time"].dt.strftime("%Y-%m-%d").to_numpy()
    best = np.zeros(len(frame), bool)
    for day in np.unique(days):
        rows = np.flatnonzero(days == day)
        best[rows[np.argsort(-frame["score"].to_numpy()[rows], kind="stable")[: QUICK.top]]] = True
    caught = np.zeros(len(frame), bool)
    card = pd.factorize(frame["card_id"])[0]
    caught[fraud] = from_alert_on(alert[fraud], card[fraud], given.event_time_us[fraud], 14 * DAY_US)
    kinds = frame["transaction_id"].map(frauds).to_numpy(object)
    variant = content.variants[0]
    bands = np.array([
        next(band.name for band in variant.amounts if within(value, band.name)) for value in amount.tolist()
    ])  # fmt: skip
    for names, slices in ((days, variant.days), (bands, variant.amounts)):
        assert {part.name for part in slices} == set(names.tolist())
        for part in slices:
            rows = names == part.name
            assert part.best == (best & rows).sum()
            assert part.value("alert_precision") == share(fraud & alert & rows, alert & rows)
            assert part.value("alert_recall") == share(fraud & alert & rows, fraud & rows)
            assert part.value("precision_at_k") == share(fraud & best & rows, best & rows)
            assert part.value("recall_at_k") == share(fraud & best & rows, fraud & rows)
            assert part.value("caught_amount") == pytest.approx(amount[caught & rows].sum())
            assert part.value("missed_amount") == pytest.approx(amount[fraud & ~caught & rows].sum())
            assert {metric.name for metric in part.metrics} == SLICE_FIGURES
    for kind in variant.fraud_types:
        rows = kinds == kind.fraud_type
        found = by_name(kind.metrics)
        assert found.keys() == {"alert_recall", "recall_at_k", "caught_amount", "missed_amount"}
        assert found["recall_at_k"] == pytest.approx((best & rows).sum() / rows.sum())
        assert found["alert_recall"] == pytest.approx((alert & rows).sum() / rows.sum())
        assert found["missed_amount"] == pytest.approx(amount[rows & ~caught].sum())


def share(part: Any, whole: Any) -> Any:
    return pytest.approx(part.sum() / whole.sum()) if whole.any() else None


def within(amount: float, band: str) -> bool:
    ends = [float(end.replace(",", "")) for end in re.findall(r"[0-9][0-9,]*", band)]
    return ends[0] <= amount < (ends[1] if len(ends) > 1 else float("inf"))


def test_intervals_of_slices_come_from_whole_days_and_cards() -> None:
    """As resampling the rows themselves gives them, with each day's best as they are."""
    given = result(rows=900)
    content = build_report(given, ReportOptions(replicates=40, top=5, seed=3)).content
    frame = given.variants[0].decisions.reset_index(drop=True)
    frauds = set(given.labels.loc[given.labels["label"] == "fraud", "transaction_id"])
    fraud = frame["transaction_id"].isin(frauds).to_numpy()
    best = top_of_days(frame["score"].to_numpy(), given.event_time_us, 5)
    amount = frame["amount_base"].to_numpy()
    variant = content.variants[0]
    band = next(part for part in variant.amounts if part.name == "100 to 200")
    inside = (amount >= 100) & (amount < 200)
    for units, attribute in ((given.event_time_us // DAY_US, "by_days"), (frame["card_id"], "by_cards")):
        number, names = pd.factorize(units)
        rng = np.random.default_rng(3)
        drawn = [np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names)) for _ in range(40)]
        values = []
        for weights in drawn:
            rows = np.repeat(np.arange(len(frame)), weights[number])
            rows = rows[inside[rows]]
            values.append((fraud & best)[rows].sum() / fraud[rows].sum())
        metric = next(metric for metric in band.metrics if metric.name == "recall_at_k")
        assert getattr(metric, attribute) == pytest.approx(np.quantile(values, [0.025, 0.975]))
    for part in (*variant.days, *variant.amounts, *variant.fraud_types):
        for metric in part.metrics:
            by_days = None if part in variant.days else metric.by_days
            assert (metric.by_days is None) == (by_days is None), (part, metric.name)
            for interval in (metric.by_days, metric.by_cards):
                if interval is not None:
                    assert interval.low <= metric.value <= interval.high, (part, metric.name)
    assert all(part.metrics[0].by_cards is not None for part in variant.days)


def test_variants_are_compared_by_day_and_by_amount() -> None:
    given = result(variants=2)
    content = quick(given).content
    variant, two = content.variants
    (beside,) = content.comparisons
    for base, other, apart in ((variant.days, two.days, beside.days), (variant.amounts, two.amounts, beside.amounts)):
        assert [part.name for part in apart] == [part.name for part in base]
        for mine, theirs, difference in zip(base, other, apart, strict=True):
            found = by_name(difference.metrics)
            for name in SLICE_FIGURES:
                before, after = mine.value(name), theirs.value(name)
                if before is not None and after is not None:
                    assert found[name] == pytest.approx(after - before)
    twin = replace(given.variants[0], name="twin")
    same = quick(replace(given, variants=[given.variants[0], twin])).content.comparisons[0]
    assert all((metric.value, metric.by_days) == (0.0, (0.0, 0.0)) for metric in same.differences)
    for part in (*same.days, *same.amounts):
        assert all(metric.value in (0.0, None) for metric in part.metrics)
        assert all(metric.by_cards in ((0.0, 0.0), None) for metric in part.metrics)


def test_what_the_labels_leave_open_is_shown_of_the_best_of_each_day_too() -> None:
    given = result(labelled=0.2)
    report = quick(given)
    item, labels = report.content.variants[0], report.content.labels
    metrics = by_name(item.metrics)
    assert item.precision_at_k_bounds.least == pytest.approx(metrics["precision_at_k"])
    assert item.recall_at_k_bounds.as_legitimate == pytest.approx(metrics["recall_at_k"])
    assert item.precision_at_k_bounds.least < item.precision_at_k_bounds.most <= 1.0
    assert item.recall_at_k_bounds.least < metrics["recall_at_k"] < item.recall_at_k_bounds.most
    assert labels.labelled_share == pytest.approx((labels.frauds + labels.legitimate) / report.content.transactions)
    alerts = sum(part.alerts for part in item.days)
    labelled = item.alerts_labelled * alerts + item.others_labelled * (report.content.transactions - alerts)
    assert labelled == pytest.approx(labels.frauds + labels.legitimate)
    assert all(source.median_delay_days == pytest.approx(2.0) for source in labels.sources)
    cells = {text for _, text in Page(report.html).texts}
    assert "variant 0: recall at 5 alerts a day" in cells
    assert f"{labels.labelled_share:.1%}" in cells


@pytest.mark.parametrize("mode", list(LabelMode))
def test_the_report_says_how_labels_came_about(mode: LabelMode) -> None:
    given = result(label_mode=mode.value)
    at = [given.labels["labelled_at"].min()]
    answers = pd.DataFrame({"transaction_id": ["t1"], "card_id": ["c1"], "known_at": at})
    if mode is LabelMode.REVIEW:
        given = replace(given, variants=[replace(given.variants[0], reviewed=ReviewOutcome(30, 4, answers))])
    report = quick(given)
    reported = {
        LabelMode.RECORDED: "Labels are those that were recorded",
        LabelMode.DELAY: "nobody has to find a fraud",
        LabelMode.REVIEW: "the best alerts of a variant's day are reviewed",
    }
    for text in (unescape(report.html), " ".join(report.text.split())):
        for other, words in reported.items():
            assert (words in text) == (other is mode)
        assert ("ooked at" in text) == (mode is LabelMode.REVIEW) or mode is not LabelMode.REVIEW
    reviewed = report.content.variants[0].reviewed
    assert (reviewed is not None) == (mode is LabelMode.REVIEW)
    if reviewed is not None:
        assert (reviewed.alerts, reviewed.unanswered, reviewed.sooner) == (30, 4, 1)
        assert "Simulated reviews" in report.html
        assert "Of 30 alerts that were looked at, 1 were answered before a report" in " ".join(report.text.split())
    assert json.loads(report.json)["labels"]["mode"] == mode.value
    assert ("Half of the labels were known within" in report.html) == (mode is not LabelMode.REVIEW)


def test_where_every_transaction_has_a_label_nothing_is_said_of_others() -> None:
    assert "The other 0" not in quick(result(labelled=1.0)).html


def test_cards_are_known_from_the_review_on_where_it_came_before_the_report() -> None:
    given = result()
    frame = given.variants[0].decisions
    alerted = frame.loc[frame["action"] == "alert", ["transaction_id", "card_id", "event_time"]]
    answers = alerted.rename(columns={"event_time": "known_at"})
    answers["known_at"] = answers["known_at"].dt.floor("D") + pd.Timedelta(hours=23, minutes=59)
    reviewed = replace(given.variants[0], reviewed=ReviewOutcome(len(answers), 0, answers))
    at = given.labels["transaction_id"].map(answers.set_index("transaction_id")["known_at"])
    moved = given.labels.assign(labelled_at=at.fillna(given.labels["labelled_at"]))
    options = ReportOptions(replicates=0, top=2)
    found, expected, without = (
        by_name(build_report(item, options).content.variants[0].metrics)
        for item in (replace(given, variants=[reviewed]), replace(given, labels=moved), given)
    )
    assert found == expected
    assert found["card_precision_at_k"] != without["card_precision_at_k"]


def test_a_report_can_be_had_as_frames() -> None:
    report = quick(result(variants=2))
    content = report.content
    metrics = report.metrics.set_index(["variant", "metric"])
    whole = next(metric for metric in content.variants[1].metrics if metric.name == "alert_recall")
    row = metrics.loc[("variant 1", "alert_recall")]
    assert row["value"] == whole.value
    assert (row["days_low"], row["cards_high"]) == (whole.by_days.low, whole.by_cards.high)
    assert np.isnan(metrics.loc[("variant 0", "precision_at_k"), "cards_low"])
    days = report.by_day
    assert len(days) == 2 * DAYS
    assert days["day"].dt.tz is not None
    assert days.groupby("variant")["transactions"].sum().tolist() == [content.transactions] * 2
    amounts = report.by_amount.set_index(["variant", "amount"])
    band = content.variants[0].amounts[1]
    row = amounts.loc[("variant 0", band.name)]
    metric = next(metric for metric in band.metrics if metric.name == "caught_amount")
    assert row["caught_amount"] == metric.value
    widths = {item.high - item.low: item for item in (metric.by_days, metric.by_cards)}
    assert (row["caught_amount_low"], row["caught_amount_high"]) == widths[max(widths)]
    assert set(report.by_fraud_type["fraud_type"]) == {"amount", "card"}
    assert quick(result(fraud_rate=0.0)).by_fraud_type.empty


def test_the_costliest_misses_have_no_alert_before_them() -> None:
    given = result(fraud_rate=0.2)
    misses = quick(given).content.variants[0].misses
    frame = given.variants[0].decisions.set_index("transaction_id")
    alerted = frame[(frame["action"] == "alert") & frame.index.isin(set(
        given.labels.loc[given.labels["label"] == "fraud", "transaction_id"]
    ))]  # fmt: skip
    assert len(misses) > 5
    assert [miss.amount for miss in misses] == sorted((miss.amount for miss in misses), reverse=True)
    for miss in misses:
        row = frame.loc[miss.transaction_id]
        assert row["action"] == "allow"
        assert miss.label == "fraud"
        before = alerted[(alerted["card_id"] == miss.card_id) & (alerted["event_time"] <= row["event_time"])]
        assert before.empty


def test_variants_are_told_apart_by_what_only_one_raises_and_catches() -> None:
    given = result(variants=3)
    content = quick(given).content
    assert [(comparison.base, comparison.other) for comparison in content.comparisons] == [
        ("variant 0", "variant 1"),
        ("variant 0", "variant 2"),
    ]
    base, other = ((variant.decisions["action"] == "alert").to_numpy() for variant in given.variants[:2])
    comparison = content.comparisons[0]
    assert comparison.only_base.alerts == (base & ~other).sum() > 0
    assert comparison.only_other.alerts == (other & ~base).sum() > 0
    assert comparison.alerts_of_both == (base & other).sum() > 0
    mine, theirs = (by_name(variant.metrics) for variant in content.variants[:2])
    differences = by_name(comparison.differences)
    assert differences["average_precision"] == pytest.approx(theirs["average_precision"] - mine["average_precision"])
    money = comparison.only_other.caught_amount - comparison.only_base.caught_amount
    assert money == pytest.approx(theirs["caught_amount"] - mine["caught_amount"])
    assert 0 < comparison.only_other.caught_amount < theirs["caught_amount"]
    assert "fraud_amount" not in differences


def test_the_page_is_well_formed_and_stands_alone() -> None:
    text = quick(result(variants=2)).html
    assert text.startswith("<!DOCTYPE html>")
    page = Page(text)
    for tag, attributes, _ in page.elements:
        assert tag not in {"script", "link", "img", "iframe", "object", "base"}
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes)
    without_namespace = text.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?:|//[a-z]|url\(|@import", without_namespace)


def test_the_page_can_be_heard() -> None:
    page = Page(quick(result(variants=2)).html)
    assert page.all("html") == [{"lang": "en"}]
    levels = [int(tag[1]) for tag, _, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    figures, drawings = page.all("figure"), page.all("svg")
    assert len(figures) == len(drawings) == 10
    for drawing in drawings:
        assert drawing["role"] == "img"
        assert len(drawing["aria-label"] or "") > 40
    assert len(page.all("figcaption")) == len(figures)
    assert len(page.all("caption")) == len(page.all("table")) > 10
    assert all(head.get("scope") in {"col", "row"} for head in page.all("th"))
    ids = [attributes["id"] for _, attributes, _ in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    for link in page.all("a"):
        assert (link["href"] or "")[1:] in ids
    for section in page.all("section"):
        assert section["aria-labelledby"] in ids


def test_the_page_can_be_read_in_light_in_the_dark_and_in_print() -> None:
    style = re.search(r"<style>(.*?)</style>", quick(result()).html, re.DOTALL)
    assert style is not None
    schemes = re.findall(r":root \{(.*?)\}", style[1], re.DOTALL)
    assert len(schemes) == 3
    for scheme in schemes:
        colours = dict(re.findall(r"--(\w+): (#\w+)", scheme))
        six = {name: "#" + "".join(2 * digit for digit in colour[1:]) if len(colour) == 4 else colour
               for name, colour in colours.items()}  # fmt: skip
        for ink in ("ink", "quiet", "link"):
            assert contrast(six[ink], six["ground"]) >= 4.5, (ink, scheme)
        for ground in ("warn", "band"):
            assert contrast(six["ink"], six[ground]) >= 4.5, (ground, scheme)


def test_names_are_never_markup() -> None:
    given = result(fraud_rate=0.3)
    variant = given.variants[0]
    frame = variant.decisions.assign(merchant_id=HOSTILE)
    hostile = Variant(HOSTILE, frame, {HOSTILE: HOSTILE}, 0.3, {HOSTILE: HOSTILE}, variant.reasons, variant.explained)
    labels = given.labels.assign(source=HOSTILE, fraud_type=HOSTILE)
    warned = replace(given, variants=[hostile], labels=labels, warnings=[HOSTILE], parameters={HOSTILE: HOSTILE})
    report = quick(warned)
    page = Page(report.html)
    assert not page.all("script")
    assert ("td", HOSTILE) in page.texts
    assert ("p", HOSTILE) in page.texts
    assert any("aria-label" in svg and HOSTILE in (svg["aria-label"] or "") for svg in page.all("svg"))
    assert max(map(len, report.text.splitlines())) <= 80


def test_the_json_says_what_the_page_says() -> None:
    report = quick(result(variants=2))
    content = json.loads(report.json)
    cells = {text for _, text in Page(report.html).texts}
    assert [variant["name"] for variant in content["variants"]] == ["variant 0", "variant 1"]
    for variant in content["variants"]:
        for metric in variant["metrics"]:
            assert metric["title"] in cells
            written = f"{metric['value']:,.{ {'amount': 0, 'a day': 1}.get(metric['unit'], 3) }f}"
            assert written in cells, metric
        for miss in variant["misses"]:
            assert miss["transaction_id"] in cells
        for day in variant["days"]:
            assert day["name"] in cells
    (drift,) = content["drift"]
    assert (drift["lightgbm"], drift["variants"], drift["known"]) == (
        "0123456789ab",
        ["variant 0", "variant 1"],
        True,
    )
    farthest = drift["features"][0]
    assert farthest["feature"] == "card_count_1h"
    assert farthest["stability_index"] > 1.0
    assert f"{farthest['ks_statistic']:.3f}" in cells
    assert content["options"]["seed"] == 0


@pytest.mark.parametrize("variants", [1, 2])
def test_the_summary_fits_a_terminal(variants: int) -> None:
    given = result(variants=variants, warnings=["History is shorter than the warm-up. " * 6])
    lines = quick(given).text.splitlines()
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    for word in ("Average precision", "Net saving", "Costliest misses of variant 0", "Warning: History is shorter"):
        assert word in text
    assert "\x1b" not in text
    assert ("variant 1 beside variant 0" in text) == (variants == 2)


def test_what_was_refused_or_repeated_is_in_the_summary() -> None:
    counts = {
        "refused transactions: unknown_currency": 3021, "refused transactions: amount_zero": 2,
        "refused labels: label_without_transaction": 40, "repeated transactions": 5, "labels: noted": 12,
    }  # fmt: skip
    text = " ".join(quick(result(counts=counts)).text.split())
    refused = "Refused: 3,023 transactions (unknown_currency 3,021, amount_zero 2) and 40 labels ("
    assert f"{refused}label_without_transaction 40). Left out since they repeat others: 5 transactions. Labels" in text
    assert "Labels that say neither fraud nor legitimate: 12." in text
    assert "Refused" not in quick(result()).text


def test_bounds_are_reported_where_something_is_open() -> None:
    assert "could put precision" in quick(result()).text
    assert "could put precision" not in quick(result(labelled=1.0)).text


def test_the_summary_ends_with_its_last_line() -> None:
    assert re.search(r"\S\n\Z", quick(result()).text)
    assert re.search(r"\S\n\Z", quick(result(drift=[])).text)


def test_the_calendar_does_not_drift_in_a_range_that_is_shorter_than_its_cycle() -> None:
    names = ("hour", "weekday", "amount")
    columns = [FEATURES.index(name) for name in names]
    reference, current = np.zeros((400, len(FEATURES))), np.zeros((300, len(FEATURES)))
    reference[:, columns] = np.random.default_rng(0).uniform(0, 7, (400, 3))
    before = distributions_of(reference, np.ones(400), names)
    counter = BinCounter.like(before)
    counter.add(current)
    drift = [ModelDrift("0123456789ab", ("variant 0",), before, counter.distributions())]

    def reported(**changes: Any) -> dict[str, tuple[float | None, float | None]]:
        (item,) = quick(result(drift=drift, **changes)).content.drift
        return {row.feature: (row.stability_index, row.ks_statistic) for row in item.features}

    six_days = reported()
    assert list(six_days)[-1] == "weekday"
    assert six_days["weekday"] == (None, None)
    assert None not in six_days["hour"] + six_days["amount"]
    assert None not in reported(to_us=FROM_US + 7 * DAY_US)["weekday"]


def test_a_model_that_does_not_tell_its_training_is_named_in_every_reading() -> None:
    reported = result().drift[0]
    silent = ModelDrift("ba9876543210", ("variant 1",), (), ())
    report = quick(result(variants=2, drift=[reported, silent]))
    sentence = "LightGBM ba9876543210 (variant 1) does not tell how features were distributed in its training"
    assert sentence in " ".join(report.text.split())
    assert any(tag == "p" and text.startswith(sentence) for tag, text in Page(report.html).texts)
    assert [row["known"] for row in json.loads(report.json)["drift"]] == [True, False]
    moved = "Since the training of LightGBM 0123456789ab (variant 0), 1 of 3 features have moved (stability index above"
    assert f"{moved} 0.25): card_count_1h" in " ".join(report.text.split())


def test_an_interrupted_replay_says_so_everywhere_and_counts_only_its_days() -> None:
    given = result()
    half = FROM_US + 3 * DAY_US
    rows = (given.event_time_us < half).sum()
    item = replace(given.variants[0], decisions=given.variants[0].decisions.iloc[:rows])
    partial = quick(replace(given, variants=[item], partial=True))
    assert "Partial: the replay was interrupted." in partial.html
    assert "(partial)" in next(text for tag, text in Page(partial.html).texts if tag == "title")
    assert partial.text.startswith("Partial: the replay was interrupted.")
    assert json.loads(partial.json)["partial"] is True
    assert partial.content.days == pytest.approx(3.0, abs=0.1)
    assert len(partial.content.variants[0].days) == 3
    whole = quick(replace(given, variants=[item]))
    for text in (whole.html, whole.text):
        assert "artial" not in text
    assert whole.content.days == DAYS


NOTHING_KNOWN = pd.DataFrame(columns=["transaction_id", "card_id", "label", "source", "labelled_at"])


@pytest.mark.parametrize(
    "given",
    [
        result(labels=NOTHING_KNOWN, drift=()),
        result(fraud_rate=0.0),
        result(fraud_rate=1.0),
        result(rows=0),
        result(rows=1),
        result(rows=1, fraud_rate=1.0),
    ],
    ids=["no labels", "no frauds", "frauds alone", "nothing", "one row", "one fraud"],
)
def test_a_report_of_next_to_nothing_is_a_report(given: BacktestResult) -> None:
    report = quick(given)
    Page(report.html)
    assert max(map(len, report.text.splitlines())) <= 80
    metrics = by_name(report.content.variants[0].metrics)
    assert "NaN" not in report.json
    assert "nan" not in report.text
    assert not re.search(r"\bnan\b|\binf\b", report.html)
    if report.content.labels.frauds == 0:
        assert metrics["average_precision"] is None
        assert any("No fraud is known" in statement for statement in report.content.labels.statements)


def test_what_does_not_belong_together_is_refused() -> None:
    given = result(variants=2)
    other = given.variants[1]
    moved = replace(other, decisions=other.decisions.iloc[::-1])
    with pytest.raises(ValueError, match="variant 1 decided about other transactions"):
        quick(replace(given, variants=[given.variants[0], moved]))
    with pytest.raises(ValueError, match="they decided \\[600, 599\\]"):
        replace(given, variants=[given.variants[0], replace(other, decisions=other.decisions.iloc[1:])])
    with pytest.raises(ValueError, match="names of their own"):
        replace(given, variants=[given.variants[0]] * 2)
    with pytest.raises(ValueError, match="at least one variant"):
        replace(given, variants=[])
    with pytest.raises(ValueError, match="range is empty"):
        replace(given, to_us=FROM_US)
    with pytest.raises(ValueError, match="outside of the range"):
        quick(replace(given, to_us=FROM_US + DAY_US))


def test_every_metric_and_option_is_documented() -> None:
    text = (Path(__file__).parents[3] / "docs" / "backtest-report.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    row = {name for row in rows for name in re.findall(r"`([a-z_]+)`", row)}
    names = {metric.name for metric in quick(result()).content.variants[0].metrics}
    assert row == names | set(ReportOptions.__struct_fields__)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"top": 0}, "top must be at least 1, not 0"),
        ({"protection_days": -1}, "protection_days must be at least 0, not -1"),
        ({"review_cost": -4}, "review_cost must be at least 0, not -4"),
        ({"review_cost": float("nan")}, "review_cost must be at least 0, not nan"),
        ({"replicates": -1}, "replicates must be at least 0, not -1"),
        ({"level": 1}, "level must be more than 0 and less than 1, not 1"),
    ],
)
def test_a_report_supposes_nothing_that_cannot_be(changed: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        ReportOptions(**changed)


def test_a_model_has_one_colour_in_every_plot() -> None:
    content = build_report(result(variants=2), ReportOptions(replicates=5, top=5)).content
    of_both = [plots.precision_recall(content), plots.alerts_by_day(content), plots.calibration(content)]
    for drawn in of_both:
        colours = re.findall(r'<polyline [^>]*stroke="(#\w+)"', drawn)
        assert set(colours) <= {*COLOURS[:2], QUIET_INK}
        assert COLOURS[0] in colours
        assert COLOURS[1] in colours
    for place, variant in enumerate(content.variants):
        assert COLOURS[place] in plots.score_distribution(variant, place)
        assert COLOURS[1 - place] not in plots.score_distribution(variant, place)
        assert COLOURS[1 - place] not in plots.top_reasons(variant, 5, place)


def test_the_verdict_begins_with_money_and_says_no_more_than_intervals_allow() -> None:
    alone = build_report(result(variants=1), ReportOptions(replicates=5, top=5)).content
    assert re.fullmatch(r"variant 0 raises [\d.,]+ alerts a day; .* of the known frauds\.", headline(alone))
    both = build_report(result(variants=2), ReportOptions(replicates=5, top=5)).content
    (item,) = both.comparisons

    def reported(name: str, value: float | None, low: float | None, high: float | None) -> str:
        within = None if low is None or high is None else ConfidenceInterval(low, high)
        differences = [
            msgspec.structs.replace(metric, value=value, by_days=within, by_cards=None)
            if metric.name == name
            else metric
            for metric in item.differences
        ]
        comparison = msgspec.structs.replace(item, differences=differences)
        return headline(msgspec.structs.replace(both, comparisons=[comparison]))

    for low, high, value, words in (
        (-0.1, 0.2, 0.1, "Which of variant 1 and variant 0 ranks frauds better is not certain: its average"),
        (0.0, 0.0, 0.0, "variant 1 and variant 0 rank alike"),
        (0.05, 0.2, 0.1, "variant 1 ranks frauds better than variant 0"),
        (-0.2, -0.05, -0.1, "variant 1 ranks frauds worse than variant 0"),
        (None, None, None, "Nobody can tell whether variant 1 ranks"),
    ):
        assert words in reported("average_precision", value, low, high)
    for low, high, value, words in (
        (-100.0, 200.0, 50.0, "Whether variant 1 saves more than variant 0 is not certain: +50 EUR"),
        (7_291.0, 18_676.0, 12_702.0, "variant 1 saves 12,702 EUR more than variant 0 (interval +7,291 to +18,676);"),
        (-9.0, -5.0, -7.0, "variant 1 saves 7 EUR less than variant 0"),
        (None, None, None, "Nobody can tell whether variant 1 saves"),
    ):
        assert reported("net_saving", value, low, high).startswith(words)
    for low, high, value, words in (
        (0.01, 0.09, 0.05, "; its alerts find 5.0 points more of the known frauds (interval +1.0 to +9.0)."),
        (-0.09, 0.01, -0.05, "; its alerts find 5.0 points less of the known frauds (interval -9.0 to +1.0)."),
        (None, None, None, "; nobody can tell which share of the known frauds its alerts find."),
    ):
        assert words in reported("alert_recall", value, low, high)


def test_a_variant_that_misses_its_budget_is_named_by_what_it_raises() -> None:
    given = result(variants=3)
    raised = by_name(quick(given).content.variants[0].metrics)["cases_per_day"]
    named = [
        replace(variant, name=f"model {number} at {budget:g} a day", parameters={BUDGET: budget})
        for number, (variant, budget) in enumerate(zip(given.variants, (raised, 2 * raised, raised / 2), strict=True))
    ]
    drift = [each._replace(variants=tuple(variant.name for variant in named)) for each in given.drift]
    report = quick(replace(given, variants=named, drift=drift))
    names = [variant.name for variant in report.content.variants]
    assert names == [variant.name for variant in named]
    reported = [by_name(variant.metrics)["cases_per_day"] for variant in report.content.variants]
    for text in (report.html, " ".join(report.text.split())):
        assert f"{names[1]} (raises {reported[1]:.3g})" in text
        assert f"{names[2]} (raises {reported[2]:.3g})" in text
        assert f"{names[0]} (raises" not in text
    titles = [item["name"] for item in json.loads(report.json)["variants"]]
    assert titles == names


@pytest.mark.parametrize(("mode", "source"), [("recorded", "simulator"), ("delay", "the history's own")])
def test_the_truth_of_a_file_has_no_simulator(mode: str, source: str) -> None:
    given = result(label_mode=mode)
    labels = quick(replace(given, labels=given.labels.assign(source="simulator"))).content.labels
    assert [row.source for row in labels.sources] == [source]


def test_what_nobody_compares_is_collapsed() -> None:
    page = Page(quick(result(variants=2)).html)
    unfolded = [found for tag, found, parents in page.elements if tag == "table" and "details" not in parents]
    assert len(unfolded) <= 20
