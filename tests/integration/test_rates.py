"""Rate tables: each version has one, and whoever needs an old one finds it again."""

import json
from pathlib import Path

import pytest
from confluent_kafka import OFFSET_END, TopicPartition

from pipeline.kafka.cluster.clients import admin_client
from pipeline.kafka.writers.producer import RecordProducer
from pipeline.models.published_files import RATES, PublishedFiles
from pipeline.settings.rate_table import RatesError
from schemas.topics import MODELS
from tests.helpers.topics import Cluster, Starter, shop
from tests.helpers.worker import ROOT

pytestmark = pytest.mark.broker


def table(version: str, **rates: str) -> bytes:
    currencies = {code: {"digits": 2, "rate": rate} for code, rate in {"EUR": "1", **rates}.items()}
    return json.dumps({"version": version, "base": "EUR", "currencies": currencies}).encode()


OLD, NEW = table("2024-03-01"), table("2024-03-02", GBP="1.17")


def published(cluster: Cluster) -> PublishedFiles:
    return PublishedFiles(cluster.bootstrap, cluster.settings)


def tables(cluster: Cluster) -> list[str]:
    return cluster.versions("rates")


def test_another_table_of_the_same_version_is_refused_at_the_start(
    cluster: Cluster, start: Starter, tmp_path: Path
) -> None:
    published(cluster).publish(RATES, NEW)
    file = tmp_path / "rates.json"
    file.write_bytes(table("2024-03-02", GBP="1.18"))
    worker = start(cluster.settings, rates_file=file)
    assert worker.code() == 1
    assert "rate table '2024-03-02' says something else" in worker.output
    assert "give what was changed a version of its own" in worker.output
    assert len(tables(cluster)) == 1
    # Other spaces and notes say nothing else.
    assert (
        published(cluster).publish(RATES, json.dumps({**json.loads(NEW), "note": "of Friday"}, indent=1).encode())
        is False
    )
    assert len(tables(cluster)) == 1


def test_of_two_tables_written_at_once_the_first_holds(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    other, produce = table("2024-03-02", GBP="2"), RecordProducer.produce

    def overtaken(*arguments: object, **more: object) -> None:
        monkeypatch.undo()
        published(cluster).publish(RATES, NEW)
        produce(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(RecordProducer, "produce", overtaken)
    with pytest.raises(RatesError, match="says something else"):
        published(cluster).publish(RATES, other)
    reader = published(cluster)
    assert reader.publish(RATES, NEW) is False
    with pytest.raises(RatesError, match="says something else"):
        reader.publish(RATES, other)


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
    cluster.command("rates", str(ROOT / "pipeline/data/rates.json"), code=0)
    found = start(cluster.settings, rates_file=file, snapshot_url="")
    found.until(lambda: len(cluster.decisions()) >= 30)
    assert found.stop() == 0, found.output


def test_the_command_publishes_tables_and_lists_them(cluster: Cluster, tmp_path: Path) -> None:
    for name, content in (("old.json", OLD), ("new.json", NEW)):
        (tmp_path / name).write_bytes(content)
    done = cluster.command("rates", str(tmp_path / "old.json"), str(tmp_path / "new.json"), code=0)
    assert [line.split()[1] for line in done.stdout.splitlines()] == ["2024-03-01", "2024-03-02"]
    assert cluster.command("rates").stdout == done.stdout
    (tmp_path / "old.json").write_bytes(table("2024-03-01", JPY="0.006"))
    again = cluster.command("rates", str(tmp_path / "old.json"), code=1)
    assert "says something else" in again.stderr
