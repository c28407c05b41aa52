"""Rules that change: what was judged stays judged, by whomever it is replayed, and rate tables are found again."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from confluent_kafka import OFFSET_END, TopicPartition

from pipeline.demo.processes import settings_environment
from pipeline.engine.scores.block_messages import read_messages
from pipeline.kafka.cluster.clients import admin_client
from pipeline.kafka.writers.producer import RecordProducer
from pipeline.models.rates import PublishedRates
from pipeline.settings.rate_table import RatesError
from schemas.topics import DEAD_LETTERS, MODELS, PROFILED, PROGRESS, TRANSACTIONS
from tests.helpers.logs import after, transaction
from tests.helpers.topics import TIMEOUT_S, Cluster, Starter, shop
from tests.helpers.worker import ROOT

pytestmark = pytest.mark.broker


def table(version: str, **rates: str) -> bytes:
    currencies = {code: {"digits": 2, "rate": rate} for code, rate in {"EUR": "1", **rates}.items()}
    return json.dumps({"version": version, "base": "EUR", "currencies": currencies}).encode()


OLD, NEW = table("2024-03-01"), table("2024-03-02", GBP="1.17")


def published(cluster: Cluster) -> PublishedRates:
    return PublishedRates(cluster.bootstrap, cluster.settings)


def tables(cluster: Cluster) -> list[str]:
    return cluster.versions("rates")


def rates_command(cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "rates", *arguments],
        env={"PATH": "", **settings_environment(cluster.settings)},
        cwd=ROOT, capture_output=True, check=False, text=True, timeout=TIMEOUT_S,
    )  # fmt: skip


def test_a_refused_currency_that_becomes_known_is_decided_when_it_is_sent_again(
    cluster: Cluster, start: Starter, tmp_path: Path
) -> None:
    """On a machine that has neither the old table nor a snapshot."""
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_bytes(OLD)
    new.write_bytes(NEW)
    cluster.publish()
    bought = shop(cluster, range(40), seed=1)
    pounds = cluster.buy(900, after(minutes=5), card_id="c1", currency="GBP")
    # Two hours ahead: refused, until a raised tolerance lets it through.
    ahead = ("c1", "t901")
    value = transaction(901, after(hours=2), card_id="c1")
    cluster.write(TRANSACTIONS, value, b"c1", after())
    cluster.flush()

    first = start(cluster.settings, rates_file=old)
    first.until(lambda: len(cluster.decisions()) >= 40 and len(cluster.read(DEAD_LETTERS)) >= 2)
    refused = [dict(record.headers)["dead-letter-error"] for record in cluster.read(DEAD_LETTERS)]
    assert sorted(refused) == [b"currency_unknown", b"event_time_in_future"]
    assert first.stop() == 0, first.output

    again = start(
        cluster.settings,
        rates_file=new,
        data_dir=tmp_path / "elsewhere",
        instance="elsewhere",
        future_tolerance_s=4 * 3600,
        deduplication_days=10,
    )
    cluster.buy(900, after(minutes=5), card_id="c1", currency="GBP")
    cluster.write(TRANSACTIONS, value, b"c1", after())
    (card, _), at = next(iter(bought.items()))
    cluster.buy(0, at, card_id=card)
    cluster.flush()
    again.until(lambda: len(cluster.decisions()) >= 42)
    again.until(lambda: any(record.key == b"feedback" for record in cluster.read(PROGRESS)))
    decided = {(decision.card_id, decision.transaction_id): decision for decision in cluster.decisions()}
    assert sorted(decided) == sorted([*bought, pounds, ahead])
    assert decided[pounds].versions.rates == "2024-03-02"
    assert decided[pounds].amount_base == pytest.approx(14.44)
    assert again.stop() == 0, again.output
    # What was judged at first bears the old table still; the new one entered with the first batch of the new worker.
    messages = [message for record in cluster.read(PROFILED) for message in read_messages(record.value)]
    assert {getattr(message, "rates_version", "") for message in messages} == {"2024-03-01", "2024-03-02"}
    reported = [json.loads(record.value or b"") for record in cluster.read(PROGRESS)]
    rules = [marker["rules"] for marker in reported if marker["agent"] == "card"]
    assert {(rule["rates_version"], rule["future_tolerance_us"] // 1_000_000) for rule in rules} == {
        ("2024-03-01", 300),
        ("2024-03-02", 4 * 3600),
    }
    assert {marker["rules"]["kind"] for marker in reported} == {"card", "feedback"}
    assert len(tables(cluster)) == 2


def test_another_table_of_the_same_version_is_refused_at_the_start(
    cluster: Cluster, start: Starter, tmp_path: Path
) -> None:
    published(cluster).publish(NEW)
    file = tmp_path / "rates.json"
    file.write_bytes(table("2024-03-02", GBP="1.18"))
    worker = start(cluster.settings, rates_file=file)
    assert worker.code() == 1
    assert "rate table '2024-03-02' says something else" in worker.output
    assert "give what was changed a version of its own" in worker.output
    assert len(tables(cluster)) == 1
    # Other spaces and notes say nothing else.
    assert published(cluster).publish(json.dumps({**json.loads(NEW), "note": "of Friday"}, indent=1).encode()) is False
    assert len(tables(cluster)) == 1


def test_of_two_tables_written_at_once_the_first_holds(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    other, produce = table("2024-03-02", GBP="2"), RecordProducer.produce

    def overtaken(*arguments: object, **more: object) -> None:
        monkeypatch.undo()
        published(cluster).publish(NEW)
        produce(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(RecordProducer, "produce", overtaken)
    with pytest.raises(RatesError, match="says something else"):
        published(cluster).publish(other)
    reader = published(cluster)
    assert reader.publish(NEW) is False
    with pytest.raises(RatesError, match="says something else"):
        reader.publish(other)


def test_a_table_that_is_nowhere_to_be_had_ends_the_worker_with_what_to_do(
    cluster: Cluster, start: Starter, tmp_path: Path
) -> None:
    cluster.publish()
    shop(cluster, range(20), seed=1)
    cluster.flush()
    first = start(cluster.settings)
    first.until(lambda: len(cluster.decisions()) >= 20)
    assert first.stop() == 0, first.output
    # As if `models` had been made anew, and the champion been published again.
    client = admin_client(cluster.bootstrap, settings=cluster.settings)  # kept for as long as its future is awaited
    (deleted,) = client.delete_records([TopicPartition(cluster.settings.topic(MODELS.name), 0, OFFSET_END)]).values()
    deleted.result()
    cluster.publish()
    shop(cluster, range(20, 30), seed=2)
    cluster.flush()
    file = tmp_path / "rates.json"
    file.write_bytes(NEW)
    lost = start(cluster.settings, rates_file=file, snapshot_url="")
    assert lost.code() == 1
    assert "were processed by rate table 'indicative-1'" in lost.output
    assert "publish its file with `fraud-pipeline rates FILE`, and start again" in lost.output
    assert len(cluster.decisions()) == 20
    assert rates_command(cluster, str(ROOT / "pipeline/data/rates.json")).returncode == 0
    found = start(cluster.settings, rates_file=file, snapshot_url="")
    found.until(lambda: len(cluster.decisions()) >= 30)
    assert found.stop() == 0, found.output


def test_the_command_publishes_tables_and_lists_them(cluster: Cluster, tmp_path: Path) -> None:
    for name, content in (("old.json", OLD), ("new.json", NEW)):
        (tmp_path / name).write_bytes(content)
    done = rates_command(cluster, str(tmp_path / "old.json"), str(tmp_path / "new.json"))
    assert done.returncode == 0, done.stderr
    assert [line.split()[1] for line in done.stdout.splitlines()] == ["2024-03-01", "2024-03-02"]
    assert rates_command(cluster).stdout == done.stdout
    (tmp_path / "old.json").write_bytes(table("2024-03-01", JPY="0.006"))
    again = rates_command(cluster, str(tmp_path / "old.json"))
    assert again.returncode == 1
    assert "says something else" in again.stderr
