"""The pipeline's own transactional producer on a real broker, beside librdkafka's."""

import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any, Final

import pytest
from confluent_kafka import Consumer, KafkaException, TopicPartition

from pipeline.kafka.cluster.admin import ensure_topics
from pipeline.kafka.cluster.clients import consumer_config
from pipeline.kafka.cluster.errors import Aborted, OutputTooLarge, Unknown
from pipeline.kafka.cluster.retries import retried
from pipeline.kafka.readers.topic_reader import read_topic
from pipeline.kafka.writers import transaction_brokers
from pipeline.kafka.writers.transaction_protocol import V1, V2, Protocol, group_member
from pipeline.kafka.writers.transactional_producers import TransactionalProducers
from pipeline.kafka.writers.transactions import FENCED, TransactionalWriter
from pipeline.settings import Settings
from schemas.records import Output, Record
from schemas.topics import ALERTS, DECISIONS, PROFILED, PROGRESS, TRANSACTIONS
from tests.helpers.waiting import eventually

pytestmark = pytest.mark.broker

KEYS: Final = (b"card-1", b"card-2", "Müller".encode(), b"", b"\xff\xfe", b"a longer key than four bytes")
CODECS: Final = ("none", "gzip", "snappy", "lz4", "zstd")


@pytest.fixture
def settings(kafka_settings: Settings) -> Settings:
    settings = kafka_settings.model_copy(
        update={"card_partitions": 3, "merchant_partitions": 2, "transaction_client": "batched"}
    )
    ensure_topics(bootstrap(settings), settings)
    return settings


def bootstrap(settings: Settings) -> str:
    assert settings.kafka_bootstrap_servers is not None
    return settings.kafka_bootstrap_servers


class Writer:
    """The writer of a session, and the group that its offsets are of."""

    def __init__(self, settings: Settings, producers: int = 2) -> None:
        self.settings, self._numbers = settings, count(1)
        self.renewals: list[None] = []
        self.producers = TransactionalProducers(
            bootstrap(settings), settings, "card", stopping=threading.Event(), waiting=lambda: None,
            renewed=lambda: self.renewals.append(None), marks=True, producers=producers,
        )  # fmt: skip
        self._writer = TransactionalWriter(settings, "card", self.producers, threading.Event(), lambda: None, dict)
        self.group = Consumer(consumer_config(bootstrap(settings), settings.topic("card"), settings=settings))
        self.producers.start()

    def commit(self, outputs: Sequence[Output]) -> int:
        """Commit outputs with an offset, which is returned."""
        offset = next(self._numbers)
        at = TopicPartition(self.settings.topic(TRANSACTIONS.name), 0, offset, f"mark {offset}")
        self._writer.commit(outputs, [at], self.group.consumer_group_metadata())
        return offset

    def committed(self) -> int:
        """Return the offset that the group has committed."""
        at = TopicPartition(self.settings.topic(TRANSACTIONS.name), 0)
        # The end of the last transaction may not be written everywhere yet.
        (found,) = retried(lambda: self.group.committed([at], 10.0))
        return int(found.offset)

    def marked(self) -> dict[int, int]:
        return self._writer.marked()


@contextmanager
def writer(settings: Settings, producers: int = 2, **changes: Any) -> Iterator[Writer]:
    made = Writer(settings.model_copy(update=changes), producers)
    try:
        yield made
    finally:
        made.producers.close()
        made.group.close()


def written(settings: Settings, name: str) -> list[Record]:
    return list(read_topic(bootstrap(settings), settings.topic(name), settings=settings))


def outputs_of_all_kinds(seed: int) -> list[Output]:
    chance = random.Random(seed)
    headers = ((), (("a", b"1"),), (("b", None), ("b", b""), ("ümläut", b"\x00")))
    outputs = [
        Output(DECISIONS, key, chance.randbytes(chance.randrange(300)) * 4, chance.choice(headers)) for key in KEYS * 20
    ]
    outputs += [Output(ALERTS, b"card-1", None), Output(ALERTS, None, b"without a key")]
    outputs += [Output(PROFILED, None, b"block %d" % number, (), number % 2) for number in range(5)]
    return [*outputs, *(Output(PROGRESS, b"card", b"marker", (), number) for number in range(2))]


def fields(records: Sequence[Record]) -> list[tuple[Any, ...]]:
    return [(item.partition, item.key, item.value, item.headers) for item in records]


@pytest.mark.parametrize("codec", CODECS)
def test_records_are_written_as_librdkafka_writes_them(settings: Settings, codec: str) -> None:
    found = []
    for client in ("batched", "librdkafka"):
        own = settings.model_copy(
            update={
                "transaction_client": client,
                "topic_prefix": f"{settings.topic_prefix}{client}-",
                "kafka_config": {"compression.type": codec},
            }
        )
        ensure_topics(bootstrap(own), own)
        with writer(own) as made:
            for seed in range(4):
                made.commit(outputs_of_all_kinds(seed))
                marked = made.marked()
            assert made.committed() == 4
        # Where a record without a key goes is chance.
        alerts = {item.key: item.value for item in written(own, ALERTS.name)}
        # Behind each of the three transactions before stands the marker of its end, or will.
        assert marked.keys() == {0, 1}
        assert all(4 <= end <= 7 for end in marked.values())
        found.append((fields(written(own, DECISIONS.name)), fields(written(own, PROFILED.name)), alerts))
    assert found[0] == found[1]
    assert len(found[0][0]) == 4 * len(KEYS) * 20


@pytest.fixture(params=["1", "2"])
def protocol(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Protocol:
    """The version of transactions: brokers of today take both."""
    version = {"1": V1, "2": V2}[request.param]
    if version is V1:
        monkeypatch.setattr(transaction_brokers, "newest_protocol", lambda _: V1)
    return version


def test_what_is_committed_counts_once_and_what_is_aborted_does_not(settings: Settings, protocol: Protocol) -> None:
    chance = random.Random(7)
    expected: list[bytes] = []
    with writer(settings, producers=1) as made:
        assert made.producers.current._newest is protocol
        for number in range(40):
            values = [b"%d-%d" % (number, item) for item in range(chance.randrange(1, 5))]
            outputs = [Output(PROFILED, None, value, (), 0) for value in values]
            if chance.random() < 0.3:
                with pytest.raises(OutputTooLarge):
                    made.commit([*outputs, Output(DECISIONS, b"k", chance.randbytes(DECISIONS.max_message_bytes + 1))])
            else:
                offset = made.commit(outputs)
                expected += values
                assert made.committed() == offset
    assert [item.value for item in written(settings, PROFILED.name)] == expected


def test_many_batches_of_a_partition_keep_their_order(
    settings: Settings, protocol: Protocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = [b"%05d" % number + bytes(200) for number in range(3_000)]
    small = {"batch.size": "20000", "message.max.bytes": "50000", "compression.type": "none"}
    with writer(settings, kafka_config=small) as made:
        made.commit([Output(PROFILED, None, value, (), number % 2) for number, value in enumerate(values)])
        made.commit([Output(PROFILED, None, value, (), number % 2) for number, value in enumerate(values)])
        assert not made.renewals
    found = written(settings, PROFILED.name)
    for partition in range(2):
        assert [item.value for item in found if item.partition == partition] == values[partition::2] * 2


def test_nobody_commits_for_a_group_as_a_member_that_it_does_not_know(settings: Settings, protocol: Protocol) -> None:
    with writer(settings) as member, writer(settings, instance="stranger") as stranger:
        member.group.subscribe([settings.topic(TRANSACTIONS.name)])
        while group_member(member.group.consumer_group_metadata()).generation <= 0:
            member.group.poll(0.1)
        assert member.commit([Output(PROFILED, None, b"1", (), 0)]) == 1
        with pytest.raises(Aborted):
            stranger.commit([Output(PROFILED, None, b"never", (), 0)])
        assert stranger.renewals == []
        assert member.commit([Output(PROFILED, None, b"2", (), 0)]) == member.committed() == 2
    assert [item.value for item in written(settings, PROFILED.name)] == [b"1", b"2"]


def test_who_uses_an_id_last_is_its_only_user(settings: Settings, protocol: Protocol) -> None:
    with writer(settings) as first:
        first.commit([Output(PROFILED, None, b"1", (), 0)])
        current = first.producers.current
        current.begin_transaction()
        current.produce(settings.topic(PROFILED.name), b"never", None, 0, None, None, 0, None)
        at = TopicPartition(settings.topic(TRANSACTIONS.name), 0, 99)
        current.send_offsets_to_transaction([at], first.group.consumer_group_metadata(), 10.0)
        with writer(settings) as second:
            second.commit([Output(PROFILED, None, b"2", (), 0)])
            with pytest.raises(KafkaException) as fenced:
                current.commit_transaction(10.0)
            assert fenced.value.args[0].code() in FENCED
            assert second.committed() == 1
    assert [item.value for item in written(settings, PROFILED.name)] == [b"1", b"2"]


def test_answers_that_never_come_are_asked_for_again_and_nothing_counts_twice(
    settings: Settings, protocol: Protocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection breaks behind a request that the broker has done, now and then."""
    chance, original = random.Random(3), transaction_brokers.TransactionBrokers.answer
    broken: list[str] = []

    async def answer(self: transaction_brokers.TransactionBrokers, address: Any, request: Any) -> Any:
        found = await original(self, address, request)
        if chance.random() < 0.15:
            broken.append(type(request).__name__)
            self._connections.failed(address, OSError("broken by the test"))
            return None
        return found

    monkeypatch.setattr(transaction_brokers.TransactionBrokers, "answer", answer)
    values = []
    with writer(settings) as made:
        for number in range(40):
            values.append(b"%d" % number)
            try:
                made.commit([Output(PROFILED, None, values[-1], (), number % 2)])
            except Unknown:
                if made.committed() != number + 1:
                    values.pop()
            except Aborted:
                values.pop()
    assert len(broken) > 10
    assert sorted(item.value or b"" for item in written(settings, PROFILED.name)) == sorted(values)


def test_a_group_is_what_librdkafka_says_it_is(settings: Settings) -> None:
    member = Consumer(
        {**consumer_config(bootstrap(settings), settings.topic("card"), settings=settings), "group.instance.id": "one"}
    )
    member.subscribe([settings.topic(TRANSACTIONS.name)])
    eventually(lambda: group_member(member.consumer_group_metadata()).generation > 0, lambda: member.poll(0.1))
    found = group_member(member.consumer_group_metadata())
    member.close()
    assert (found.group, found.group_instance) == (settings.topic("card"), "one")
    assert found.member
    assert found.generation > 0


def test_an_idle_client_hears_of_new_leaders_and_connections_that_were_closed(settings: Settings) -> None:
    with writer(settings) as made:
        made.commit([Output(PROFILED, None, b"1", (), 0)])
        for client in made.producers._clients:
            for address in list(client.producer._brokers._connections._open):
                client.producer._brokers._connections.failed(address, OSError("closed for idling"))
        made.commit([Output(PROFILED, None, b"2", (), 0)])
        assert not made.renewals
    assert [item.value for item in written(settings, PROFILED.name)] == [b"1", b"2"]
