"""What can be said of the Kafka Streams peer without Java: its jars are those that it names, and the broker's Kafka."""

import json

from pipeline.broker.jars import pinned, read_list
from tests.benchmarks.peers.kafka_streams.build import ENDPOINTS, JARS


def test_the_list_of_jars_is_that_of_the_endpoints() -> None:
    text = JARS.read_text(encoding="utf-8")
    assert json.loads(text)["endpoints"] == list(ENDPOINTS)
    listed = {f"{jar.group}:{jar.artifact}:{jar.version}" for jar in read_list(text)}
    assert set(ENDPOINTS) <= listed


def test_the_peer_speaks_to_the_broker_with_the_client_of_its_own_release() -> None:
    broker, peer = ({jar.artifact: jar for jar in jars} for jars in (pinned(), read_list(JARS.read_text("utf-8"))))
    assert peer["kafka-clients"] == broker["kafka-clients"]
    shared = set(peer) & set(broker)
    assert [name for name in shared if peer[name] != broker[name]] == []
