"""The example of a Faust agent is run as its page shows it, with Faust's own transport."""

import json
import shlex
import signal
from pathlib import Path

import pytest
from confluent_kafka import Producer

from pipeline.kafka.cluster.clients import producer_config
from pipeline.settings import Settings
from schemas.topics import ALERTS
from tests.helpers.documents import fenced
from tests.helpers.topics import Cluster, Starter
from tests.helpers.waiting import TIMEOUT_S
from tests.helpers.worker import ROOT

pytestmark = pytest.mark.broker

PAGE = (ROOT / "examples/faust-agent.md").read_text(encoding="utf-8")
ALERT = json.loads((ROOT / "schemas/golden/v1/alert.json").read_bytes())


def test_the_agent_prints_committed_alerts(
    kafka_settings: Settings, start: Starter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, console = (block.content for block in fenced(PAGE, "python", "console"))
    command, shown = console.splitlines()
    # The name of the topic stands in the program.
    cluster = Cluster(kafka_settings.model_copy(update={"topic_prefix": ""}))
    producer = Producer(producer_config(cluster.bootstrap, transactional_id="faust-example"))
    producer.init_transactions(TIMEOUT_S)
    aborted, card = "aborted-card", shown.split()[0]
    # Of several transactions Faust commits one at a time, and so ends with some that it has not committed.
    for key, finish in ((aborted, producer.abort_transaction), *[(card, producer.commit_transaction)] * 4):
        producer.begin_transaction()
        value = json.dumps({**ALERT, "card_id": key, "amount": 870.45})
        producer.produce(ALERTS.name, value, key, partition=0)
        producer.flush(TIMEOUT_S)
        finish(TIMEOUT_S)

    (tmp_path / "desk.py").write_text(program, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("FAUST_DATADIR", str(tmp_path / "faust"))
    desk = start(cluster.settings, "-m", *shlex.split(command)[1:])
    desk.until(lambda: desk.output.splitlines().count(shown) == 4)
    desk.process.send_signal(signal.SIGINT)
    assert desk.code() == 0, desk.output
    assert "ERROR" not in desk.output
    assert aborted not in desk.output
