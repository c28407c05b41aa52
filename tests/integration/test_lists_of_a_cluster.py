"""Lists on a cluster: changes are all or nothing, decisions name what overruled what, and `forget` reaches entries."""

import csv
import re
import secrets
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import msgspec
import numpy as np
import pandas as pd
import pytest
from msgspec.structs import astuple, replace

from pipeline.backtest.report import build_report
from pipeline.backtest.report.content import VariantContent
from pipeline.decision.lists import ListSet
from pipeline.engine.scores.active_models import ActiveModels
from pipeline.exports.topic_export import TopicExport, named
from pipeline.kafka.writers.producer import DeliveryFailed
from pipeline.models.library import PublishedVersions
from pipeline.models.list_changes import ListChanges
from pipeline.models.list_log import ListLog, part_record
from pipeline.models.publish import ControlWriter
from pipeline.models.suppressions import keep_caps
from pipeline.protection.signing import Signer
from pipeline.protection.tokens import CARD_ID, TokenKeys
from pipeline.scoring.errors import ModelError
from pipeline.scoring.river_factory import first_river
from schemas.messages import Alert, Decision, ListChange
from schemas.records import Output
from schemas.topics import ACCEPTED_LABELS, ALERTS, CONTROL, LISTS
from tests.helpers.backtest_inputs import backtest_of, simulated_days, with_a_champion
from tests.helpers.champion import policy
from tests.helpers.logs import after
from tests.helpers.models import small_model
from tests.helpers.topics import Cluster, Starter, once
from tests.unit.protection.test_signing import key_pair

pytestmark = pytest.mark.broker

WHY = ("--reason", "A test.", "--by", "dana")
WATCH = ("--kind", "watch", "--field", "card_id")
SUPPRESS = ("--kind", "suppress", "--field", "card_id", "--for", "7d")
ALL = 0.0
"""A threshold that alerts on everything."""


def bought(cluster: Cluster, numbers: range, late_s: int = 0) -> None:
    for number in numbers:
        at = after(seconds=number - late_s)
        cluster.buy(
            number, at, card_id=f"c{number % 7}", merchant_id=f"m{number % 3}", country=("DE", None)[number % 2]
        )
    cluster.flush()


def by_transaction(cluster: Cluster) -> dict[str, Decision]:
    return {decision.transaction_id: decision for decision in cluster.decisions()}


def by_pandas(frame: pd.DataFrame, names: "pd.Series[Any]") -> dict[str, dict[str, int]]:
    """Return hits, frauds and amounts by what overruled an alert."""
    rows = frame.assign(name=names).explode("name").dropna(subset=["name"])
    rows["fraud_minor"] = rows["minor"].where(rows["fraud"], 0)
    sums = rows.groupby("name").agg(
        hits=("minor", "size"),
        amount_minor=("minor", "sum"),
        frauds=("fraud", "sum"),
        fraud_minor=("fraud_minor", "sum"),
    )
    return {name: {column: int(value) for column, value in row.items()} for name, row in sums.to_dict("index").items()}


def version_of(output: str) -> str:
    found = re.search(r"(?:Version|Change) ([0-9a-f]{12})", output)
    assert found is not None, output
    return found[1]


def sets_of(cluster: Cluster, decisions: list[Decision]) -> dict[str, ListSet]:
    published, log = (
        PublishedVersions.on(cluster.bootstrap, cluster.settings),
        ListLog(cluster.bootstrap, cluster.settings),
    )
    named = {decision.versions.lists for decision in decisions} - {""}
    return {version: log.load(published.payload("lists", version) or b"") for version in sorted(named)}


def test_a_change_of_many_entries_is_all_or_nothing_though_a_worker_dies(
    cluster: Cluster, start: Starter, tmp_path: Path
) -> None:
    cluster.publish(policy(ALL))
    first = start(cluster.settings)
    bought(cluster, range(60))
    first.until(lambda: len(cluster.decisions()) == 60)
    assert all(not each.list_hits and not each.versions.lists for each in cluster.decisions())

    # Several parts: the worker dies while it reads them, or just before or after.
    file = tmp_path / "cards.csv"
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerows([("value", "owner"), *((f"c{number}", "fraud-team") for number in range(12_000))])
    options = ("--kind", "allow", "--field", "card_id", "--for", "30d")
    proposed = cluster.command("lists", "import", "cards", str(file), *options, *WHY, code=0).output
    assert "is proposed, since its entries would cover" in proposed
    change = version_of(proposed)
    assert "dana has proposed" in cluster.command("lists", "approve", change, *WHY, code=1).output
    bought(cluster, range(60, 200))
    approved = cluster.command("lists", "approve", change, "--reason", "Good.", "--by", "mona", code=0).output
    first.end()
    cluster.command("lists", "add", "stolen", "c3", "--kind", "block", "--field", "card_id", *WHY, code=0)
    second = start(cluster.settings)
    bought(cluster, range(200, 300))
    second.until(lambda: len(cluster.decisions()) == 300)
    assert second.stop() == 0, second.output

    decisions = cluster.decisions()
    assert once(decisions)
    assert {each.versions.lists for each in decisions} <= {
        "",
        version_of(approved),
        ListChanges.on(cluster.bootstrap, cluster.settings).version,
    }
    sets = sets_of(cluster, decisions)
    alerts = {msgspec.json.decode(each.value or b"", type=Alert).transaction_id: each for each in cluster.read(ALERTS)}
    for decision in decisions:
        lists = sets.get(decision.versions.lists)
        blocks = lists is not None and "stolen" in lists.definitions and decision.card_id == "c3"
        assert len(lists or ()) in (0, 12_000, 12_001)
        names = [] if lists is None else ["stolen", "cards"] if blocks else ["cards"]
        assert (decision.list_hits or []) == names
        assert decision.selection == ("list" if blocks else None if lists is not None else "score")
        overruled = {"stolen": ["cards"]} if blocks else {"cards": ["score"]} if lists is not None else {}
        assert (decision.overruled or {}) == overruled
        assert (decision.transaction_id in alerts) == (decision.selection is not None)
    blocked = next(each for each in decisions if each.selection == "list")
    alert = msgspec.json.decode(alerts[blocked.transaction_id].value or b"", type=Alert)
    assert (alert.reasons[0].code, alert.reasons[0].sentence) == (
        "BLOCK_LIST",
        "Its card_id is on the block list stolen.",
    )
    again = backtest_of(order="recorded", compare_live=True, settings=cluster.settings)
    again.run()
    assert again.comparison is not None
    assert (again.comparison.compared, again.comparison.differences) == (300, [])


def test_what_a_list_overrules_does_not_count_against_the_cap_of_a_rule(
    cluster: Cluster, start: Starter, tmp_path: Path
) -> None:
    cluster.publish(policy(0.999))
    for code in ("any-one", "muted"):
        (tmp_path / f"{code}.sql").write_text(
            f"-- code: {code}\n-- owner: dana\n-- reason: All.\n-- max-alerts-per-hour: 2\namount > 0\n"
        )
        cluster.command("rules", "publish", str(tmp_path / f"{code}.sql"), *WHY, code=0)
        cluster.command("rules", "activate", code, "--untested", *WHY, code=0)
    for name, kind in (("shop", ("allow", "--for", "30d")), ("stolen", ("block",))):
        cluster.command("lists", "add", name, name, "--field", "merchant_id", "--kind", *kind, *WHY, code=0)
    quiet = ("--kind", "suppress", "--field", "rule", "--for", "30d", "--cap", "1000000.00")
    cluster.command("lists", "add", "quiet", "muted", *quiet, *WHY, code=0)
    worker = start(cluster.settings)
    for number, merchant in enumerate([*["shop"] * 8, *["stolen"] * 8, *(f"m{number}" for number in range(40))]):
        cluster.buy(number, after(seconds=number), card_id="c1", merchant_id=merchant)
    cluster.flush()
    worker.until(lambda: len(cluster.decisions()) == 56)
    assert worker.stop() == 0, worker.output
    decisions = cluster.decisions()
    shop = [each for each in decisions if each.merchant_id == "shop"]
    assert [(each.overruled or {}).get("shop") for each in shop] == [["any-one"]] * 8
    assert all(each.selection == "list" and not each.shadow_hits for each in decisions if each.merchant_id == "stolen")
    raised = Counter(each.log.partition for each in decisions if each.selection == "rule")
    others = Counter(each.log.partition for each in decisions if each.merchant_id not in ("shop", "stolen"))
    assert raised == {partition: min(count, 2) for partition, count in others.items()}
    assert raised.total() < 40
    missed = msgspec.json.decode(cluster.command("lists", "missed", "--json", code=0).output)
    hits = {name.partition("/")[0]: each["hits"] for name, each in missed.items()}
    assert hits["shop"] == 8
    assert hits["quiet"] == 48
    again = backtest_of(order="recorded", compare_live=True, settings=cluster.settings)
    again.run()
    assert again.comparison is not None
    assert (again.comparison.compared, again.comparison.differences) == (56, [])


def test_an_entry_holds_by_the_time_of_the_transaction_and_rules_read_it(
    cluster: Cluster, start: Starter, tmp_path: Path
) -> None:
    cluster.publish(policy(0.999))
    ends = after(seconds=50).isoformat()
    (tmp_path / "home.csv").write_text(f"value,expires,reason\nDE,{ends},It is at home.\n")
    options = ("--kind", "watch", "--field", "country")
    imported = cluster.command("lists", "import", "home", str(tmp_path / "home.csv"), *options, *WHY, code=0)
    assert "1 expired already" in imported.output
    rule = tmp_path / "abroad.sql"
    rule.write_text("-- code: abroad\n-- owner: d\n-- reason: Abroad.\ncountry not in list('home')\n")
    cluster.command("rules", "publish", str(rule), *WHY, code=0)
    cluster.command("rules", "activate", "abroad", "--untested", *WHY, code=0)
    rule.write_text("-- code: no\n-- owner: d\n-- reason: No.\ncountry in list('nowhere')\n")
    assert "'nowhere', which there is not" in cluster.command("rules", "publish", str(rule), *WHY, code=1).output
    rule.write_text("-- code: no\n-- owner: d\n-- reason: No.\nchannel in list('home')\n")
    assert "list 'home', which is of country" in cluster.command("rules", "publish", str(rule), *WHY, code=1).output
    assert "abroad  active" in cluster.command("lists", "used-in", "home", code=0).output

    worker = start(cluster.settings)
    bought(cluster, range(100))
    worker.until(lambda: len(cluster.decisions()) == 100)
    # Behind all others on every partition, and yet before the expiry.
    bought(cluster, range(100, 120), late_s=90)
    worker.until(lambda: len(cluster.decisions()) == 120)
    assert worker.stop() == 0, worker.output
    for decision in cluster.decisions():
        number = int(decision.transaction_id[1:])
        second, is_home = number if number < 100 else number - 90, number % 2 == 0
        holds = is_home and second < 50
        assert (decision.list_hits or []) == (["home"] if holds else []), number
        assert (decision.rule_hits or []) == (["abroad"] if is_home and not holds else []), number
    exported = tmp_path / "out.csv"
    exported.write_text(cluster.command("lists", "export", "home", code=0).output)
    (row,) = csv.DictReader(exported.read_text().splitlines())
    assert (row["value"], row["expires"], row["reason"]) == ("DE", ends, "It is at home.")
    again = cluster.command("lists", "import", "home", str(exported), "--replace", *WHY, code=0)
    assert version_of(again.output) == version_of(imported.output), "nothing has changed"
    assert "home  watch  country  text  entries: 1" in cluster.command("lists", "show", code=0).output


def test_a_backtest_by_time_decides_by_the_lists_of_each_transaction(cluster: Cluster, start: Starter) -> None:
    cluster.publish(policy(0.999))

    def now(number: int, country: str) -> None:
        cluster.buy(number, datetime.now(UTC), card_id=f"c{number % 7}", country=country)

    now(0, "DE")
    cluster.flush()
    cluster.command("lists", "add", "bad", "DE", "--kind", "block", "--field", "country", *WHY, code=0)
    worker = start(cluster.settings)
    worker.until(lambda: len(cluster.decisions()) == 1)
    for number in range(1, 40):
        now(number, ("DE", "FR")[number % 2])
    cluster.flush()
    worker.until(lambda: len(cluster.decisions()) == 40)
    second = version_of(cluster.command("lists", "add", "bad", "FR", *WHY, code=0).output)
    worker.until(lambda: f"lists version {second} is active" in worker.output)
    for number in range(40, 80):
        now(number, ("DE", "FR")[number % 2])
    cluster.flush()
    worker.until(lambda: len(cluster.decisions()) == 80)
    cluster.command("lists", "remove", "bad", "DE", *WHY, code=0)
    assert worker.stop() == 0, worker.output
    live = {decision.transaction_id: decision for decision in cluster.decisions()}
    # The first one was decided late, when the list was there already.
    for order, before, same in (("event-time", 1, {*live} - {"t0"}), ("recorded", 0, {*live})):
        parts: list[pd.DataFrame] = []
        backtest = backtest_of(order=order, models=["active"], thresholds=[0.999, 0.9999], settings=cluster.settings)
        backtest.each(lambda _, made, kept=parts: kept.append(made.frame()))  # type: ignore[misc]
        found = pd.concat(parts)
        assert len(found) == 160
        for row in found[found["transaction_id"].isin(same)].itertuples():
            decision = live[row.transaction_id]
            assert row.lists_version == decision.versions.lists != ""
            assert [*row.list_hits] == (decision.list_hits or [])
            assert row.action == decision.action
        assert (found["action"] == "alert").sum() == 2 * (60 - before)
        assert (found["lists_version"] == "").sum() == 2 * before
    content = build_report(backtest_of(models=["active"], settings=cluster.settings).run()).content
    assert content.parameters["lists"] == "then"
    assert content.variants[0].models["lists"].count(",") == 2, "none, and the two that decided"


def test_an_export_beside_its_cluster_is_decided_as_its_topics_are(
    cluster: Cluster, start: Starter, tmp_path: Path
) -> None:
    cluster.publish(policy(0.999))
    (tmp_path / "rules").mkdir()
    file = tmp_path / "rules" / "home.sql"
    file.write_text("-- code: home\n-- owner: d\n-- reason: At home.\ncountry = 'DE' and not country in list('far')\n")
    cluster.command("rules", "publish", str(file), *WHY, code=1)
    cluster.command("lists", "add", "far", "FR", "--kind", "watch", "--field", "country", *WHY, code=0)
    cluster.command("rules", "publish", str(file), *WHY, code=0)
    cluster.command("rules", "activate", "home", "--untested", *WHY, code=0)
    worker = start(cluster.settings)
    quiet = (*SUPPRESS, "--cap", "1000000.00", *WHY)
    # The lists of then are none, one and another one; today there is one more.
    for first, last in ((0, 40), (40, 80), (80, 120)):
        for number in range(first, last):
            country = ("DE", "FR", None)[number % 3]
            cluster.buy(number, datetime.now(UTC), card_id=f"c{number % 7}", amount=10.0 + number, country=country)
        cluster.flush()
        worker.until(lambda last=last: len(cluster.decisions()) == last)  # type: ignore[misc]
        version = version_of(cluster.command("lists", "add", "quiet", f"c{first // 40}", *quiet, code=0).output)
        worker.until_it_says(f"lists version {version} is active")
    for number in range(0, 120, 2):
        cluster.say((f"c{number % 7}", f"t{number}"), datetime.now(UTC), "fraud" if number % 4 else "legitimate")
    cluster.flush()
    assert worker.stop() == 0, worker.output
    TopicExport(cluster.bootstrap, cluster.settings, tmp_path / "out", [named("transactions"), named("labels")]).run()

    def decided(history: Path | None, **asked: Any) -> tuple[pd.DataFrame, VariantContent]:
        parts: list[pd.DataFrame] = []
        asked |= {"thresholds": [0.999], "settings": cluster.settings}
        backtest_of(history, **asked).each(lambda _, made: parts.append(made.frame()))
        content = build_report(backtest_of(history, **asked).run()).content
        says.append(content.parameters["lists"])
        return pd.concat(parts).drop(columns="row"), content.variants[0]

    says: list[Any] = []
    of_topics, variant_of_topics = decided(None)
    of_export, variant_of_export = decided(tmp_path / "out", bootstrap=cluster.bootstrap)
    pd.testing.assert_frame_equal(of_export, of_topics)
    assert variant_of_export == variant_of_topics
    assert {tuple(hits) for hits in of_topics["rule_hits"]} == {(), ("home",)}
    assert {each.code for each in variant_of_topics.rules if each.since} == {"home"}
    # No list was there before the first transactions were decided, but for the watch list.
    assert of_topics["lists_version"].nunique() == 3
    assert {each.name.partition("/")[0] for each in variant_of_topics.overruled} == {"quiet"}
    assert sum(each.frauds for each in variant_of_topics.overruled) > 0
    live = {each.transaction_id: each for each in cluster.decisions()}
    for row in of_export.itertuples():
        decision = live[row.transaction_id]
        assert (row.action, [*row.rule_hits]) == (decision.action, decision.rule_hits or [])
        assert [*row.overruled_by] == [*(decision.overruled or {})]

    of_today, variant_of_today = decided(tmp_path / "out", bootstrap=cluster.bootstrap, lists="today")
    assert of_today["lists_version"].nunique() == 1
    assert sum(each.hits for each in variant_of_today.overruled) > sum(
        each.hits for each in variant_of_topics.overruled
    )
    for history in (None, tmp_path / "out"):
        of_files, variant = decided(history, bootstrap=cluster.bootstrap, rules=tmp_path / "rules")
        assert [(each.code, each.since) for each in variant.rules] == [("home", None)]
        pd.testing.assert_series_equal(of_files["rule_hits"], of_topics["rule_hits"])
    alone, _ = decided(tmp_path / "out", models={"active": ActiveModels(small_model(), first_river(), policy(0.999))})
    assert not alone["rule_hits"].map(len).any()
    assert says == ["then", "then", "today", "then", "then", "none"]
    (tmp_path / "rules" / "more.sql").write_text("-- code: no\n-- owner: d\n-- reason: No.\ncountry in list('none')\n")
    with pytest.raises(ModelError, match="'none', which there is not: make it with `lists add`"):
        decided(tmp_path / "out", bootstrap=cluster.bootstrap, rules=tmp_path / "rules")


def test_a_rule_is_tested_by_the_lists_of_each_decision(cluster: Cluster, start: Starter, tmp_path: Path) -> None:
    cluster.publish(policy(0.999))
    cluster.command("lists", "add", "home", "FR", "--kind", "watch", "--field", "country", *WHY, code=0)
    rule = tmp_path / "abroad.sql"
    rule.write_text("-- code: abroad\n-- owner: d\n-- reason: Abroad.\ncountry not in list('home')\n")
    cluster.command("rules", "publish", str(rule), *WHY, code=0)
    worker = start(cluster.settings)
    bought(cluster, range(50))
    worker.until(lambda: len(cluster.decisions()) == 50)
    cluster.command("lists", "add", "home", "DE", *WHY, code=0)
    worker.until(lambda: worker.output.count("lists version") == 2)
    bought(cluster, range(50, 100))
    # Its days are held out.
    cluster.buy(100, after(20), country="DE")
    cluster.flush()
    worker.until(lambda: len(cluster.decisions()) == 101)
    assert worker.stop() == 0, worker.output
    live = sum(bool(decision.shadow_hits) for decision in cluster.decisions())
    assert live == 25, "each second transaction has a country, and the list had it not before the change"
    shown = cluster.command("rules", "test", str(rule), "--on", "topics", code=0).output
    assert f"  hits: {live}, " in shown
    assert "leaks" not in shown
    shown = cluster.command("rules", "test", str(rule), "--on", "topics", "--lists", "today", code=0).output
    assert "  hits: 0, " in shown
    leaks = "what was listed since then leaks into these figures"
    assert leaks in shown
    assert leaks not in cluster.command("rules", "report", "--on", "topics", code=0).output
    (unknown := tmp_path / "no.sql").write_text("-- code: no\n-- owner: d\n-- reason: No.\ncountry in list('none')\n")
    refused = cluster.command("rules", "test", str(unknown), "--on", "topics", code=1).output
    assert "'none', which there is not: make it with `lists add`" in refused
    with_a_champion(cluster.settings.data_dir)
    simulated_days(20).to_parquet(file := tmp_path / "file.parquet")
    assert leaks in cluster.command("rules", "report", "--on", str(file), code=0).output
    cluster.command("rules", "retire", "abroad", *WHY, code=0)
    assert leaks in cluster.command("rules", "publish", str(rule), "--on", str(file), *WHY, code=0).output


def test_forgetting_a_card_takes_its_entries_out_of_every_change(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.publish()
    secret = tmp_path / "secret"
    secret.write_text(secrets.token_hex(32))
    secret.chmod(0o600)
    monkeypatch.setenv("FRAUD_PIPELINE_TOKEN_SECRET_FILE", str(secret))
    monkeypatch.setenv("FRAUD_PIPELINE_TOKEN_DATABASE_FILE", str(tmp_path / "tokens.sqlite"))
    settings = cluster.settings.model_copy(
        update={"token_secret_file": secret, "token_database_file": tmp_path / "tokens.sqlite"}
    )
    cluster.settings = settings
    options = ("--kind", "block", "--field", "card_id")
    before = version_of(cluster.command("lists", "add", "stolen", "4111", "4222", *options, *WHY, code=0).output)
    cluster.command("lists", "remove", "stolen", "4111", *WHY, code=0)
    cluster.command("lists", "add", "stolen", "4111", *WHY, code=0)
    with TokenKeys.from_settings(settings) as keys:
        token, other = keys.token((CARD_ID, "4111")) or "", keys.token((CARD_ID, "4222")) or ""
    shown = cluster.command("lists", "show", "stolen", code=0).output
    assert token in shown
    assert "4111" not in shown
    everything = b"".join(each.value or b"" for topic in (LISTS, CONTROL) for each in cluster.read(topic))
    assert token.encode() in everything
    assert b"4111" not in everything

    # Somebody without the secret wrote a card's number itself.
    with monkeypatch.context() as without:
        without.delenv("FRAUD_PIPELINE_TOKEN_SECRET_FILE")
        cluster.settings = settings.model_copy(update={"token_secret_file": None})
        cluster.command("lists", "add", "stolen", "4333", "4444", *WHY, code=0)
    cluster.settings = settings
    # One of them never had a token.
    assert "1 entries of lists" in cluster.command("forget", "4444", code=0).output
    assert "has no key for this card_id" in cluster.command("forget", "4444", code=1).output
    cluster.command("lists", "add", "stolen", "4333", *WHY, code=0)
    assert "4333" in cluster.command("lists", "show", "stolen", code=0).output
    assert "2 entries of lists" in cluster.command("forget", "4333", code=0).output
    assert "4333" not in cluster.command("lists", "show", "stolen", code=0).output
    left = b"".join({each.key: each.value or b"" for each in cluster.read(LISTS)}.values())
    assert [text for text in (b"4333", b"4444") if text in left] == []

    with monkeypatch.context() as patched:
        patched.setattr(ControlWriter, "activate", Mock(side_effect=DeliveryFailed("somebody was there before")))
        cluster.command("forget", "4111", code=1)
    assert "3 entries of lists" in cluster.command("forget", "4111", code=0).output
    forgotten = PublishedVersions.on(cluster.bootstrap, settings).history.activations[-1].figures["forgotten"]
    assert forgotten == 1 + 2 + 3

    shown = cluster.command("lists", "show", "stolen", code=0).output
    assert token not in shown
    assert other in shown
    newest = {each.key: each.value or b"" for each in cluster.read(LISTS)}
    assert token.encode() not in b"".join(newest.values()), "compaction leaves the newest record of each key"
    published, log = PublishedVersions.on(cluster.bootstrap, settings), ListLog(cluster.bootstrap, settings)
    old = log.load(published.payload("lists", before) or b"")
    assert (old.version, len(old)) == (before, 1)
    test = ("in", ("field", "card_id"), ("list", "stolen"))
    assert old.truth(test, {"card_id": [token, other]}.__getitem__, np.zeros(2, np.int64)).tolist() == [0, 1]


def test_a_suppression_ends_within_90_days_and_one_of_before_goes_on(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.publish()
    add = ("lists", "add", "quiet", "--kind", "suppress", "--field", "card_id", "--cap", "5.00", *WHY)
    late = cluster.command(*add, "c1", "--for", "36500d", code=1).output
    assert late == "Error: entry 'c1' expires later than 90 days from now: give it less time\n"
    with monkeypatch.context() as before:
        before.setattr("pipeline.models.list_changes.LONGEST_DAYS", 36_501)
        cluster.command(*add, "c1", "--for", "36500d", code=0)
    cluster.command(*add, "c2", "--for", "90d", code=0)
    cluster.command("lists", "remove", "quiet", "c2", *WHY, code=0)
    (shown,) = cluster.command("lists", "show", "quiet", code=0).output.splitlines()
    assert re.match(r"c1  until 21\d\d-", shown)


def test_a_change_that_no_trusted_key_signed_leaves_the_lists_as_they_are(
    cluster: Cluster,
    start: Starter,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Of many refused records of a topic, one every few seconds is reported.
    monkeypatch.setattr("pipeline.kafka.cluster.client_log.REPEAT_S", 0.0)
    keys = (key_pair(tmp_path, name)[0] for name in ("own", "other"))
    own, other = (cluster.settings.model_copy(update={"signing_key_file": key, "deployment": "test"}) for key in keys)
    cluster.settings = own
    cluster.publish(policy(0.999))
    block = ("--kind", "block", "--field", "card_id")
    cluster.command("lists", "add", "stolen", "c1", *block, *WHY, code=0)
    worker = start(own)
    bought(cluster, range(7))
    worker.until(lambda: len(cluster.decisions()) == 7)

    # The content that names the change is signed: what is forged takes the place of a part, as `forget` writes one.
    (true,) = cluster.read(LISTS)
    part = msgspec.json.decode(true.value or b"", type=ListChange)
    forged = part_record(replace(part, entries=[replace(part.entries[0], value="c2")], forgotten=1))
    signed = Signer.from_settings(other).headers(forged, own.topic(LISTS.name))
    for headers in ((), signed, true.headers):
        cluster.write(LISTS, forged.value, forged.key, datetime.now(UTC), headers)
    cluster.flush()
    reasons = (
        "it is not signed",
        "it is signed by a key that is not among FRAUD_PIPELINE_TRUSTED_KEYS",
        "its signature is wrong",
    )
    shown = cluster.command("lists", "show", "stolen", code=0).output
    assert ("c1  for ever" in shown, "c2  for ever" in shown) == (True, False)
    name = own.topic(LISTS.name)
    for offset, reason in enumerate(reasons, true.offset + 1):
        line = f"{name} partition 0 offset {offset} is refused: {reason}; only this pipeline's programs may write"
        assert any(message.startswith(line) for message in caplog.messages), caplog.messages

    version = version_of(cluster.command("lists", "add", "stolen", "c3", *WHY, code=0).output)
    worker.until_it_says(f"lists version {version} is active")
    assert f"{name} partition 0 offset {true.offset + 1} is refused: {reasons[0]}" in worker.output
    bought(cluster, range(7, 14))
    worker.until(lambda: len(cluster.decisions()) == 14)
    assert worker.stop() == 0, worker.output
    later = start(own)
    bought(cluster, range(14, 21))
    later.until(lambda: len(cluster.decisions()) == 21)
    assert later.stop() == 0, later.output
    listed = {each.transaction_id for each in cluster.decisions() if each.list_hits}
    assert listed == {"t1", "t8", "t10", "t15", "t17"}, "c1, and c3 once it was added; never c2"


def test_a_change_whose_parts_come_late_counts_once_they_are_there(
    cluster: Cluster, start: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.publish(policy(0.999))
    block = ("--kind", "block", "--field", "card_id")
    before = version_of(cluster.command("lists", "add", "stolen", "c1", *block, *WHY, code=0).output)
    worker = start(cluster.settings)
    worker.until_it_says(f"lists version {before} is active")

    # As where the leader of `lists` has moved: what it held is committed, and cannot be read for a while.
    held: list[Output] = []
    with monkeypatch.context() as away:
        away.setattr("pipeline.models.publish.ControlWriter.records", lambda _, outputs: held.extend(outputs))
        version = version_of(cluster.command("lists", "add", "stolen", "c3", *WHY, code=0).output)
    worker.until_it_says(f"lists version {version} is not active yet, and is tried again: ")
    bought(cluster, range(7))
    worker.until(lambda: len(cluster.decisions()) == 7)
    for output in held:
        cluster.write(LISTS, output.value, output.key, datetime.now(UTC))
    cluster.flush()
    worker.until_it_says(f"lists version {version} is active (was {before})")
    bought(cluster, range(7, 14))
    worker.until(lambda: len(cluster.decisions()) == 14)
    assert worker.stop() == 0, worker.output
    listed = {each.transaction_id: each.versions.lists for each in cluster.decisions() if each.list_hits}
    assert listed == {"t1": before, "t8": version, "t10": version}
    assert worker.output.count("is not active yet") == 1


def test_allow_entries_end_and_a_second_person_approves_where_one_is_asked_for(cluster: Cluster) -> None:
    cluster.publish()
    allow = ("--kind", "allow", "--field", "merchant_id")
    assert "needs its expiry" in cluster.command("lists", "add", "good", "m1", *allow, *WHY, code=1).output
    late = cluster.command("lists", "add", "good", "m1", *allow, "--for", "91d", *WHY, code=1).output
    assert "expires later than 90 days from now" in late
    cluster.command("lists", "add", "good", "m1", *allow, "--for", "90d", *WHY, code=0)
    assert (
        "give another name"
        in cluster.command("lists", "add", "good", "x", "--kind", "block", "--field", "ip", *WHY, code=1).output
    )
    assert (
        "a suppression needs a cap"
        in cluster.command(
            "lists", "add", "quiet", "m1", "--kind", "suppress", "--field", "merchant_id", "--for", "1d", *WHY, code=1
        ).output
    )
    assert "has no entry 'm9'" in cluster.command("lists", "remove", "good", "m9", *WHY, code=1).output
    cluster.settings = cluster.settings.model_copy(update={"second_approval": True})
    change = version_of(cluster.command("lists", "add", "good", "m2", "--for", "1d", *WHY, code=0).output)
    assert "m2" not in cluster.command("lists", "show", "good", code=0).output
    assert "dana has proposed" in cluster.command("lists", "approve", change, *WHY, code=1).output
    # Somebody else's change comes between: the proposed one is made on what is there by now.
    third = version_of(cluster.command("lists", "remove", "good", "m1", *WHY, code=0).output)
    cluster.command("lists", "approve", third, "--reason", "Yes.", "--by", "mona", code=0)
    cluster.command("lists", "approve", change, "--reason", "Yes.", "--by", "mona", code=0)
    again = cluster.command("lists", "approve", change, "--reason", "Yes.", "--by", "mona", code=1).output
    assert "was approved already" in again
    shown = cluster.command("lists", "show", "good", code=0).output
    assert ("m1" in shown, "m2" in shown) == (False, True)
    # Of two proposals of one name, the second to be approved would come into a list of another kind.
    watched, blocked = (
        version_of(cluster.command("lists", "add", "vip", "c1", "--kind", kind, "--field", field, *WHY, code=0).output)
        for kind, field in (("watch", "card_id"), ("block", "merchant_id"))
    )
    cluster.command("lists", "approve", blocked, "--reason", "Yes.", "--by", "mona", code=0)
    refused = cluster.command("lists", "approve", watched, "--reason", "Yes.", "--by", "mona", code=1).output
    assert "list 'vip' has become a block list of merchant_id (text) since" in refused


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("Home", "DE", *WATCH), "not 'Home'"),
        (("far", "c1", *WATCH, "--for", "1e200d"), "'c1' expires outside of the years"),
        (("far", "c1", *WATCH, "--for", "99999999d"), "expires outside of the years"),
        (("old", "c1", *WATCH, "--until", "0001-01-01T00:00:00+10:00"), "expires outside of the years"),
        (("net", "10.1.0.0/8", "--match", "cidr"), "list 'net' is a watch list of ip (text)"),
        (("net", "10.1.0.0", "10.1.0.0"), "entry '10.1.0.0' is given twice"),
        (("off", "none", "--kind", "suppress", "--field", "rule", "--for", "7d", "--cap", "5"), "no rule 'none'"),
        (("off", "c1", *SUPPRESS, "--cap", "NaN"), "'NaN' is no amount"),
        (("off", "c1", *SUPPRESS, "--cap", "1e999999999"), "is no amount"),
    ],
)
def test_what_nobody_could_read_is_never_written(cluster: Cluster, arguments: tuple[str, ...], sentence: str) -> None:
    cluster.publish()
    cluster.command("lists", "add", "net", "10.0.0.1", "--kind", "watch", "--field", "ip", *WHY, code=0)
    refused = cluster.command("lists", "add", *arguments, *WHY)
    assert refused.exit_code in (1, 2)
    assert sentence in " ".join(refused.output.split())
    assert "entries: 1" in cluster.command("lists", "show", code=0).output


def test_a_file_that_is_none_is_refused_in_a_sentence(cluster: Cluster, tmp_path: Path) -> None:
    cluster.publish()
    for content, sentence in (
        ("value\nDE\xe4".encode("latin-1"), "is no CSV in UTF-8"),
        (b"value\n" + b"x" * 200_000, "is no CSV in UTF-8"),
        (b"value,value\nDE,AT\n", "each once"),
        (b"value,owner\nDE,a,b\n", "line 2, the row of 'DE' has more cells than the header"),
        (b"value,expires\nDE,tomorrow\n", "line 2, entry 'DE': 'tomorrow' is no time"),
        (b"value,expires\nDE,\nDE,2020-01-01\n", "entry 'DE' is given twice"),
    ):
        (file := tmp_path / "home.csv").write_bytes(content)
        refused = cluster.command("lists", "import", "home", str(file), "--kind", "watch", "--field", "country", *WHY)
        assert refused.exit_code in (1, 2)
        assert sentence in " ".join(refused.output.split())


def test_what_suppressions_hide_is_counted_to_the_cent_and_ends_at_its_cap(
    cluster: Cluster, start: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.publish(policy(ALL))
    options = ("--kind", "suppress", "--for", "90d", "--cap", "400.00")
    cluster.command("lists", "add", "quiet", "c1", "c2", "--field", "card_id", *options, *WHY, code=0)
    cluster.command("lists", "add", "calm", "m1", "--field", "merchant_id", *options, *WHY, code=0)
    worker = start(cluster.settings)
    for number in range(60):
        cluster.buy(
            number,
            after(seconds=number),
            card_id=f"c{number % 4}",
            merchant_id=f"m{number % 3}",
            amount=round(9.37 + number, 2),
        )
    cluster.flush()
    worker.until(lambda: len(cluster.decisions()) == 60)
    for number in range(0, 60, 5):
        cluster.say((f"c{number % 4}", f"t{number}"), after(minutes=5))
    cluster.flush()
    worker.until(lambda: len(cluster.read(ACCEPTED_LABELS)) == 12)

    missed = msgspec.json.decode(cluster.command("lists", "missed", "--json", code=0).output)
    frame = pd.DataFrame(map(msgspec.structs.asdict, cluster.decisions()))
    frame["minor"] = (frame["amount_base"] * 100).round().astype(int)
    frame["fraud"] = frame["transaction_id"].str[1:].astype(int).mod(5).eq(0) & frame["action"].ne("alert")
    assert missed == by_pandas(frame, frame["overruled"].map(list))
    assert sum(each["frauds"] for each in missed.values()) > 3
    assert {name.split("/")[0] for name in missed} == {"quiet", "calm"}

    # A replay overrules the same: what it says of each decision is compared.
    again = backtest_of(order="recorded", compare_live=True, settings=cluster.settings)
    (variant,) = build_report(again.run()).content.variants
    assert again.comparison is not None
    assert (again.comparison.compared, again.comparison.differences) == (60, [])
    assert {each.name: astuple(each)[1:] for each in variant.overruled} == {
        name: (each["hits"], each["amount_minor"] / 100, each["frauds"], each["fraud_minor"] / 100)
        for name, each in missed.items()
    }, "a report says of the suppressions what `lists missed` says"
    over = {name for name, total in missed.items() if total["amount_minor"] >= 40_000}
    assert 0 < len(over) < 3
    fences = list[bool]()
    read = ListChanges.on

    def interrupted(*given: Any) -> ListChanges:
        fences.append(len(given) == 3)
        if fences.count(True) == 1 and fences[-1]:
            ControlWriter(cluster.bootstrap, cluster.settings).fence()
        return read(*given)

    monkeypatch.setattr(ListChanges, "on", interrupted)
    # Nobody stops it: what has ended is said at once.
    with closing(keep_caps(cluster.bootstrap, cluster.settings, lambda: False)) as keeping:
        assert {name for name, _ in islice(keeping, len(over))} == over
    assert fences == [False, True, True], "at the start, and behind the fence, again where somebody else took it"
    monkeypatch.undo()
    assert cluster.command("lists", "caps", "--once", code=0).output == ""
    version = ListChanges.on(cluster.bootstrap, cluster.settings).version
    worker.until(lambda: f"lists version {version} is active" in worker.output)
    for number in range(60, 90):
        cluster.buy(number, after(seconds=number), card_id=f"c{number % 4}", merchant_id=f"m{number % 3}", amount=99.5)
    cluster.flush()
    worker.until(lambda: len(cluster.decisions()) == 90)
    assert worker.stop() == 0, worker.output
    late = [each for name, each in by_transaction(cluster).items() if int(name[1:]) >= 60]
    names = {name for decision in late for name in decision.overruled or {}}
    assert names.isdisjoint(over)
    assert names
    ended = cluster.command("lists", "caps", "--once", code=0).output
    assert {line.split()[0] for line in ended.splitlines()} == names
    assert "has ended: hits of" in ended
