"""Following a topic: what was committed before a call is there after it, whatever stands behind it."""

import pytest
from confluent_kafka import Producer

from pipeline.kafka.cluster.clients import producer_config
from pipeline.kafka.readers.follower import TopicFollower
from pipeline.kafka.readers.replay_reader import readable_ends
from schemas.topics import MODELS
from tests.helpers.logs import START
from tests.helpers.topics import Cluster
from tests.helpers.waiting import TIMEOUT_S

pytestmark = pytest.mark.broker


def test_all_that_was_committed_before_a_call_is_read_by_it(cluster: Cluster) -> None:
    name = cluster.settings.topic(MODELS.name)
    producer = Producer(producer_config(cluster.bootstrap, transactional_id=f"{name}-writer"))
    producer.init_transactions(TIMEOUT_S)

    def write(value: bytes, *, abort: bool = False) -> None:
        producer.begin_transaction()
        producer.produce(name, value, b"k", partition=0)
        producer.flush(TIMEOUT_S)
        (producer.abort_transaction if abort else producer.commit_transaction)(TIMEOUT_S)

    follower = TopicFollower(cluster.bootstrap, cluster.settings, MODELS).start()
    waited: list[None] = []
    try:
        assert follower.read_to_end(lambda: None) == []
        for number in range(5):
            value = b"%d" % number
            write(value)
            # Nothing to be read stands behind it, and its end was not told of yet.
            write(b"aborted", abort=True)
            assert [record.value for record in follower.read_committed(lambda: waited.append(None))] == [value]
            write(b"aborted", abort=True)
            assert follower.read_committed(lambda: waited.append(None)) == []
            assert follower.poll(0.1) == []
    finally:
        follower.close()
    assert waited


def test_what_an_open_transaction_hides_is_waited_for(cluster: Cluster) -> None:
    """A restore would end before it: what was committed behind an open transaction cannot be read yet."""
    name = cluster.settings.topic(MODELS.name)
    held = {"transaction.timeout.ms": 600_000}  # no broker ends it while the test looks
    producer = Producer(producer_config(cluster.bootstrap, transactional_id=f"{name}-writer", overrides=held))
    producer.init_transactions(TIMEOUT_S)
    producer.begin_transaction()
    producer.produce(name, b"hidden", b"k", partition=0)
    producer.flush(TIMEOUT_S)
    cluster.write(MODELS, b"committed", b"k", START, partition=0)
    cluster.flush()
    asked = iter(range(4))

    def waiting() -> None:
        # In front of every question to the brokers.
        if next(asked, None) == 3:
            producer.commit_transaction(TIMEOUT_S)

    assert readable_ends(cluster.bootstrap, cluster.settings, [(name, 0)], waiting) == {(name, 0): 2}
    assert next(asked, None) is None
    follower = TopicFollower(cluster.bootstrap, cluster.settings, MODELS).start()
    assert [record.value for record in follower.read_to_end(lambda: None)] == [b"hidden", b"committed"]
    follower.close()
