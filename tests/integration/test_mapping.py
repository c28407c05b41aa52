"""Producers that write JSON of their own: one mapping for live traffic, restores and backtests."""

import subprocess
import sys
from pathlib import Path

import pytest
from confluent_kafka import OFFSET_END, TopicPartition

from pipeline.demo.processes import settings_environment
from pipeline.kafka.cluster.clients import admin_client
from schemas.topics import DEAD_LETTERS, MODELS, REROUTED, TRANSACTIONS
from tests.helpers.backtest_inputs import backtest_of
from tests.helpers.champion import active
from tests.helpers.logs import after, transaction
from tests.helpers.mappings import CORE, foreign
from tests.helpers.topics import Cluster, Starter, command, once
from tests.helpers.worker import ROOT, inherited_environment

pytestmark = pytest.mark.broker

REPEATED = 10
"""Transactions that are sent again, and are of another shop by the second mapping."""


def bought(cluster: Cluster, numbers: range) -> None:
    """Foreign records without a key, so that most lie in another partition than their card's."""
    for number in numbers:
        at = after(seconds=number)
        stated = transaction(number, at, card_id=f"c{number % 7}", merchant_id=f"m{number % 3}", amount=number + 1.5)
        cluster.write(TRANSACTIONS, foreign(stated), None, at, partition=number % 2)
    cluster.flush()


def mapping_file(directory: Path, content: bytes) -> Path:
    file = directory / "mapping.toml"
    file.write_bytes(content)
    return file


def test_each_is_decided_once_and_again_alike_whatever_the_mapping_is_by_then(
    cluster: Cluster, start: Starter, tmp_path: Path
) -> None:
    cluster.publish()
    file = mapping_file(tmp_path, CORE)
    first = start(cluster.settings, mapping_file=file)
    bought(cluster, range(40))
    first.until(lambda: len(cluster.decisions()) >= 40)
    first.end()
    # The shop is another one from here on; the state is made from the log alone, with the mapping of its time.
    mapping_file(tmp_path, CORE.replace(b"core-1", b"core-2").replace(b'"payload.after.shop"', b'"payload.after.ccy"'))
    second = start(cluster.settings, mapping_file=file, snapshot_url="")
    bought(cluster, range(40 - REPEATED, 80))
    cluster.write(TRANSACTIONS, b'{"payload":{}}', None, after(), partition=0)
    cluster.flush()
    second.until(lambda: len(cluster.decisions()) >= 80 and len(cluster.read(DEAD_LETTERS)) == REPEATED + 1)
    assert second.stop() == 0, second.output
    decisions = cluster.decisions()
    assert once(decisions)
    assert len(decisions) == 80
    assert {decision.merchant_id for decision in decisions} == {"m0", "m1", "m2", "EUR"}
    assert len(cluster.read(REROUTED)) > 10
    settings = cluster.settings.model_copy(update={"mapping_file": file})
    again = backtest_of(order="recorded", compare_live=True, settings=settings)
    again.run()
    assert again.comparison is not None
    assert (again.comparison.compared, again.comparison.differences) == (80, [])
    by_topics = backtest_of(settings=settings).run().variants[0].decisions
    command(settings, "export", str(tmp_path / "export"), code=0)
    exported = backtest_of(tmp_path / "export", settings=settings, models={"own": active()})
    by_export = exported.run().variants[0].decisions
    names = ["transaction_id", "card_id", "merchant_id", "amount_base"]
    assert by_topics[names].to_numpy().tolist() == by_export[names].to_numpy().tolist()
    assert len(by_export) == 80


def test_a_number_of_the_producers_own_is_a_feature_without_a_line_of_code(
    cluster: Cluster, start: Starter, tmp_path: Path
) -> None:
    declared = tmp_path / "features.toml"
    declared.write_text('[fields.device_risk]\ntype = "number"\nmeaning = "risk score of the device"\n')
    settings = cluster.settings.model_copy(update={"features_file": declared})
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "models", "cold-start", "--audit-rate=1", "--reason=New."],
        env={**inherited_environment(), **settings_environment(settings)},
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0
    worker = start(settings, mapping_file=mapping_file(tmp_path, CORE))
    at = after(1)
    stated = transaction(1, at, attributes={"device_risk": 0.75})
    cluster.write(TRANSACTIONS, foreign(stated), None, at)
    cluster.flush()
    worker.until(lambda: len(cluster.decisions()) == 1)
    assert worker.stop() == 0, worker.output
    (decision,) = cluster.decisions()
    assert decision.features is not None, "it is audited"
    assert decision.features["attribute_device_risk"] == 0.75


def test_a_lost_mapping_of_a_version_gives_way_to_no_other(cluster: Cluster, tmp_path: Path) -> None:
    own = mapping_file(tmp_path, CORE)
    cluster.command("map", "--publish", str(own), code=0)
    client = admin_client(cluster.bootstrap, settings=cluster.settings)  # kept for as long as its future is awaited
    (deleted,) = client.delete_records([TopicPartition(cluster.settings.topic(MODELS.name), 0, OFFSET_END)]).values()
    deleted.result()
    other = tmp_path / "other.toml"
    other.write_bytes(CORE.replace(b'"payload.after.shop"', b'"payload.after.ccy"'))
    refused = cluster.command("map", "--publish", str(other), code=1)
    assert "mapping 'core-1' was another file, whose content is lost: publish that one" in refused.output
    cluster.command("map", "--publish", str(own), code=0)


def test_another_mapping_of_the_same_version_is_refused_at_the_start(
    cluster: Cluster, start: Starter, tmp_path: Path
) -> None:
    cluster.command("map", "--publish", str(mapping_file(tmp_path, CORE)), code=0)
    file = mapping_file(tmp_path, CORE.replace(b'"payload.after.shop"', b'"payload.after.ccy"'))
    worker = start(cluster.settings, mapping_file=file)
    assert worker.code() == 1
    assert "mapping 'core-1' says something else" in worker.output
    wrong = start(cluster.settings, mapping_file=mapping_file(tmp_path, CORE.replace(b"merchant_id", b"merchnt")))
    assert wrong.code() == 1
    assert "mapping.toml: [fields.merchnt]: there is no such field; did you mean merchant_id?" in wrong.output
    assert "Traceback" not in wrong.output
