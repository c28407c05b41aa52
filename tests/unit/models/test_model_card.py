"""The model card: every figure comes from a record, and what is not recorded is said to be so."""

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.features.catalogue import FEATURES, MEANINGS
from pipeline.learning.regimes import LabelRegime
from pipeline.learning.report_delays import ReportDelays
from pipeline.learning.trained_labels import TrainedLabels
from pipeline.models.description import facts_of, gains
from pipeline.models.known import KnownVersion
from pipeline.models.model_card import CardSources, card_page, cell, model_card
from pipeline.models.registry import LIGHTGBM, POLICY, Registry
from pipeline.models.version_history import VersionEvent, VersionHistory
from pipeline.scoring.payload import payload_digest
from pipeline.training.fit import Trained
from pipeline.training.validation import (
    SCORE_EDGES,
    benchmark,
    by_period,
    calibration_table,
    input_digest,
    outcomes_by_segment,
)
from schemas.messages import Activation, Assessment, VersionReference
from schemas.times import US_PER_DAY
from tests.helpers.models import matrix, small_model
from tests.unit.models.test_model_history import START
from tests.unit.training.test_training import synthetic, trained


@cache
def version() -> Trained:
    return trained(synthetic(), details={"labels": {"regime": {"reported": "frauds-only", "delay_days": 7.0}}})


def known(name: str, payload: bytes) -> KnownVersion:
    return KnownVersion(name, payload_digest(payload)[:12], payload)


def card(*events: VersionEvent, payload: bytes | None = None, **changes: Any) -> str:
    model = known(LIGHTGBM, payload or version().model.to_payload())
    made = known(POLICY, version().policy.to_payload())
    sources = CardSources(
        facts_of(model), gains(model), facts_of(made), VersionHistory(events), "", timedelta(days=365)
    )
    return model_card(sources._replace(**changes))


def reference(digest: str) -> VersionReference:
    return VersionReference(name=LIGHTGBM, version=digest[:12], digest=digest, offset=0)


def test_the_card_has_the_figures_of_the_training() -> None:
    text, item = card(), version()
    metrics = item.metrics
    assert f"# Model card: LightGBM version {item.model.version}" in text
    for name in ("average_precision", "auc_roc", "alert_precision", "threshold"):
        assert f"| {cell(metrics[name])} |" in text
    simple = cell(item.model.metadata["benchmark"]["logistic_regression"])
    assert (
        f"| logistic regression on `amount`, `card_amount_to_regular`, `merchant_unexplained_fraud_30d` | {simple} |"
        in (text)
    )
    assert text.count("| `card_") == sum(name.startswith("card_") for name in FEATURES)
    assert f"| seed | {item.model.metadata['training']['seed']} |" in text
    assert "| which transactions get labels | frauds-only |" in text
    assert "Legitimate transactions had no labels" in text
    by_arguments = {**facts_of(known(LIGHTGBM, item.model.to_payload())), "labels": None}
    by_arguments["request"] = {"arguments": {"reported": "frauds-only", "label_delay_days": None, "seed": 3}}
    text = card(facts=by_arguments)
    assert "### Label regime\n\n|  |  |\n| --- | --- |\n| which transactions get labels | frauds-only |\n\n" in text
    assert "Legitimate transactions had no labels" in text


def test_the_label_regime_is_written_in_words() -> None:
    regime = LabelRegime(
        reported="mixed", delay_spread=0.5, never_reported=0.1, early_share=0.2, early_hours=12.0, corrected_share=0.1
    )
    delays = ReportDelays(regime, np.arange(10) * US_PER_DAY).describe()
    data = synthetic()
    labels = TrainedLabels(int(data.event_time_us.max()), US_PER_DAY, regime.describe(), {"analyst": delays})
    described = labels.describe(data.event_time_us, data.fraud)
    # As the payload of a version sorts them.
    recorded = msgspec.json.decode(msgspec.json.encode(described, order="sorted"))
    text = card(facts={**facts_of(known(LIGHTGBM, version().model.to_payload())), "labels": recorded})
    section = text.partition("### Label regime")[2].partition("## ")[0]
    assert len(described["regime"]) == len(msgspec.structs.fields(LabelRegime))
    assert re.findall(r"[a-z]+_[a-z_]+|[a-z]\.[a-z]|\d-(?!\d)", section) == []
    for words in ("frauds, by age in days: 30 or more", "reports by analyst: days until half had come"):
        assert f"| {words}" in section
    assert re.findall(r"frauds, by age in days: (\d+)", section) == ["0", "1", "7", "30"]


def with_metadata(**changes: Any) -> bytes:
    """A version whose metadata somebody has changed, before it was published under the digest that it then has."""
    content = msgspec.json.decode(version().model.to_payload())
    content["metadata"] |= changes
    return msgspec.json.encode(content)


def test_no_metadata_stand_for_what_the_content_is() -> None:
    text = card(payload=with_metadata(version="0" * 12, digest="0" * 64, trees=0, features=5, calibration=[], kernel=7))
    assert "0" * 12 not in text
    assert f"{version().model.trees} trees" in text


@pytest.mark.parametrize("value", [5, "x", [], [5], {"a": 5}, {"a": {}}, [{"from": 5}], None])
def test_a_forged_version_is_refused_in_one_sentence(
    value: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRAUD_PIPELINE_DATA_DIR", str(tmp_path))
    registry = Registry(tmp_path / "registry")
    refused = set()
    for name in ("training", "request", "metrics", *version().model.metadata, "sensitivity", "labels"):
        forged = registry.register(LIGHTGBM, with_metadata(**{name: value}))
        result = CliRunner().invoke(main, ["models", "card", forged, "--registry"])
        assert "error of the program" not in result.output
        if result.exit_code:
            assert f"Error: LightGBM version {forged} is forged or damaged: " in result.output
            refused.add(name)
    assert len(refused) >= 5


def test_shares_of_gain_add_up_and_are_those_of_lightgbm() -> None:
    item = version().model
    found = gains(known(LIGHTGBM, item.to_payload()))
    wanted = item._booster.feature_importance("gain")
    for name, gain in found.items():
        assert gain == pytest.approx(wanted[FEATURES.index(name)] / wanted.sum(), rel=1e-3)
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_approvals_and_rejected_challengers_are_those_of_control() -> None:
    digest = version().model.digest
    promoted = Activation(
        versions=[reference(digest)], activated_at=START, step="promote", by="mo|na", reason="It is better."
    )
    rejected = Assessment(
        versions=[reference("c" * 64)], against=[reference(digest)], outcome="rejected", by="retrain",
        reason="It finds less.", figures={"difference": -3.25, "examples": {"end": 1}}, assessed_at=START,
    )  # fmt: skip
    accepted = msgspec.structs.replace(rejected, versions=[reference("d" * 64)], outcome="accepted")
    text = card(promoted, rejected, accepted)
    assert "d" * 12 not in text
    assert "| 2026-03-01 00:00 | promote | mo\\|na | It is better. |" in text
    assert f"| 2026-03-01 00:00 | {'c' * 12} | rejected | It finds less. | difference -3.25 |" in text
    assert "| review due | 2027-03-01 |" in text
    assert "never activated on a cluster that was asked" in card(rejected)
    assert "| first active | on no cluster that was asked |" in card()


def test_what_is_not_recorded_is_said_to_be_so() -> None:
    text = card(payload=small_model().to_payload(), policy=None)
    for sentence in (
        "The label regime is not recorded",
        "The calibration table is not recorded",
        "Periods: not recorded",
    ):
        assert sentence in text
    assert "| average precision | not recorded |" in text


def test_every_feature_has_a_meaning_of_its_own() -> None:
    assert MEANINGS.keys() == set(FEATURES)
    assert len(set(MEANINGS.values())) == len(FEATURES)
    assert MEANINGS["merchant_std_7d"] == "standard deviation of the merchant's amounts in the last 7 days"


def test_a_calibration_table_counts_every_row_once() -> None:
    random = np.random.default_rng(1)
    score = np.r_[random.random(1_000), 0.0, 1.0]
    fraud, weight = random.random(1_002) < score, random.uniform(1, 3, 1_002)
    found = calibration_table(fraud, score, weight)
    assert sum(row["rows"] for row in found) == pytest.approx(weight.sum())
    assert sum(row["rows"] * row["observed_rate"] for row in found) == pytest.approx(weight[fraud].sum())
    for row in found:
        its = (score >= row["from"]) & ((score < row["to"]) | (row["to"] == SCORE_EDGES[-1]))
        assert row["mean_score"] == pytest.approx(np.average(score[its], weights=weight[its]))


def test_a_season_is_shown_by_months() -> None:
    time_us = np.arange(31 * 86_400, (31 + 70) * 86_400, 8_640) * 1_000_000
    found = by_period(np.zeros(len(time_us), bool), np.zeros(len(time_us)), np.ones(len(time_us)), time_us)
    assert [(row["from"], row["days"]) for row in found] == [("1970-02-01", 28), ("1970-03-01", 31), ("1970-04-01", 11)]
    assert sum(row["rows"] for row in found) == len(time_us)


def test_outcomes_of_segments_add_up() -> None:
    random = np.random.default_rng(2)
    n, threshold = 3_000, 0.8
    features, score, weight = matrix(n, seed=1), random.random(n), random.integers(1, 3, n).astype(float)
    fraud = random.random(n) < score / 4
    channel = np.array(["web", "pos", None], object)[random.integers(0, 3, n)]
    mcc = np.array([f"{item}" for item in random.integers(0, 15, n)], object)
    found = outcomes_by_segment(features, {"channel": channel, "mcc": mcc}, fraud, score, weight, threshold)
    for name in ("amount", "channel", "mcc"):
        its = [row for row in found if row["segment"] == name]
        assert sum(row["rows"] for row in its) == weight.sum()
        assert sum(row["frauds"] for row in its) == weight[fraud].sum()
        assert sum(row["expected_frauds"] for row in its) == pytest.approx((weight * score).sum(), rel=1e-4)
        alerts = sum(row["alert_rate"] * row["rows"] for row in its)
        assert alerts == pytest.approx(weight[score >= threshold].sum(), rel=1e-4)
    assert {row["value"] for row in found if row["segment"] == "channel"} == {"web", "pos", "none"}
    assert [row["value"] for row in found if row["segment"] == "mcc"][-1] == "others"
    web = next(row for row in found if row["value"] == "web")
    its = (channel == "web") & (score >= threshold)
    wrong = weight[its & ~fraud].sum()
    assert web["precision"] == pytest.approx(1 - wrong / weight[its].sum(), rel=1e-4)
    assert web["false_positives_per_1000"] == pytest.approx(1_000 * wrong / weight[channel == "web"].sum(), rel=1e-4)
    quiet = outcomes_by_segment(features, {}, fraud, score, weight, 2.0)
    assert {row["precision"] for row in quiet} == {None}


def test_wrong_labels_are_measured_on_true_ones() -> None:
    text = card()
    assert "`fraud-pipeline train --wrong-labels` measures it" in text
    assert "Outcomes by segment" in text
    data = synthetic()
    item = trained(data, wrong_labels=True)
    found = item.model.metadata["sensitivity"]
    assert [part["labels"][:4] for part in found] == ["none", "1% o", "5% o", "10% ", "a so"]
    assert found[0]["wrong"] == 0
    assert found[0]["average_precision"] == pytest.approx(item.metrics["average_precision"])
    assert found[0]["card_precision_100"] == pytest.approx(item.metrics["card_precision_100"])
    wrong = [part["wrong"] for part in found[1:4]]
    assert wrong == sorted(wrong)
    assert wrong[2] == pytest.approx(0.2 * data.fraud.sum(), rel=0.3)
    assert all(part["average_precision"] < found[0]["average_precision"] + 0.02 for part in found[1:])
    text = card(payload=item.model.to_payload())
    assert f"| 10% of the frauds, and as many others | {wrong[2]:,} |" in text


def test_the_highest_scores_are_compared_with_the_version_before() -> None:
    digest = version().model.digest
    figures = {"top_overlap": 0.93, "top_rank_correlation": 0.81, "compared_with": "served"}
    promoted = Activation(versions=[reference(digest)], activated_at=START, step="promote", by="r", figures=figures)
    assert "| 2026-03-01 00:00 | served | 0.93 | 0.81 |" in card(promoted)
    assert "with another version's is not recorded" in card()


@pytest.mark.parametrize(("days", "step", "rows"), [(14, 1, 14), (15, 7, 3), (62, 7, 9)])
def test_a_short_period_is_shown_by_days_and_a_long_one_by_weeks(days: int, step: int, rows: int) -> None:
    time_us = np.arange(days * 10) * 8_640_000_000
    found = by_period(np.zeros(len(time_us), bool), np.zeros(len(time_us)), np.ones(len(time_us)), time_us)
    assert [row["days"] for row in found] == [step] * rows
    assert sum(row["rows"] for row in found) == len(time_us)


def test_the_benchmark_uses_no_feature_that_the_version_may_not_use() -> None:
    data = synthetic()
    rows, checked = np.arange(4_000), np.arange(4_000, 6_000)
    asked = data, (rows, np.ones(4_000)), checked
    assert set(benchmark(*asked, FEATURES)) == {"amount", "logistic_regression", "features"}
    assert benchmark(*asked, ["hour"]) == {}
    assert benchmark(*asked, ["card_amount_to_regular"])["features"] == ["card_amount_to_regular"]


def test_the_digest_is_of_what_a_training_sees() -> None:
    data, rows = synthetic(), np.arange(100)
    names = ("amount", "card_amount_to_usual")

    def digest(names: Sequence[str] = names, **changes: Any) -> str:
        return input_digest(replace(data, **changes), rows, names)

    other = data.features.copy()
    other[:, FEATURES.index("hour")] += 1
    assert digest(features=other) == digest()
    other[5, FEATURES.index("amount")] += 1
    assert len({digest(), digest(features=other), digest(fraud=~data.fraud), digest(names=names[:1])}) == 4


def test_a_card_becomes_a_page_without_foreign_markup() -> None:
    activation = Activation(
        versions=[reference(version().model.digest)], activated_at=START, step="promote", by="<b>a|b</b>", reason="r"
    )
    page = card_page(card(activation), "x")
    assert "<td>&lt;b&gt;a|b&lt;/b&gt;</td>" in page
    assert page.count("<table>") == page.count("</table>") == len(re.findall(r"\n\n\|", card(activation)))
    assert "<code>amount</code>" in page
    assert "<th>feature</th>" in page
    assert "<li>It fits the features of kernel" in page
    hostile = msgspec.structs.replace(activation, by="[a](//b.c) *d*")
    assert "<td>[a](//b.c) *d*</td>" in card_page(card(hostile), "x")


def test_the_command_writes_a_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRAUD_PIPELINE_DATA_DIR", str(tmp_path))
    registry = Registry(tmp_path / "registry")
    for name, payload in ((LIGHTGBM, version().model.to_payload()), (POLICY, version().policy.to_payload())):
        registry.register(name, payload)

    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(main, ["models", "card", version().model.version, "--registry", *arguments])
        return result.exit_code, result.output

    code, text = run()
    assert code == 0
    assert f"Of policy {version().policy.version}." in text
    assert run("--output", str(tmp_path / "card.md")) == (0, f"Wrote {tmp_path / 'card.md'}.\n")
    assert (tmp_path / "card.md").read_text() == text
    assert run("--output", str(tmp_path / "card.html"))[0] == 0
    assert (tmp_path / "card.html").read_text().startswith("<!doctype html>")
    assert "neither a .md nor a .html file" in run("--output", str(tmp_path / "card.pdf"))[1]
    assert "cannot be written" in run("--output", str(tmp_path / "no/card.md"))[1]
