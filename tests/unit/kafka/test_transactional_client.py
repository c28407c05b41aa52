"""Whatever befalls a transaction's requests, its records and offsets count once or not at all."""

import threading
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import count
from typing import Final

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from hypothesis import given, strategies

from pipeline.kafka.cluster.errors import Aborted, OutputTooLarge, SessionError, Unknown
from pipeline.kafka.records.batch import Partition
from pipeline.kafka.writers import call_loop, transaction_brokers, transactional_producers, transactions
from pipeline.kafka.writers.producer_batches import keyed_partitions
from pipeline.kafka.writers.transactional_producers import TransactionalProducers
from pipeline.kafka.writers.transactions import TransactionalWriter
from pipeline.settings import Settings
from schemas.records import Output
from schemas.topics import DECISIONS, PROFILED, PROGRESS
from tests.helpers.transaction_model import Fault, Late, Mishap, ModelCluster, install

COUNTS: Final = {PROFILED.name: 2, DECISIONS.name: 3, PROGRESS.name: 2}
GROUP_METADATA: Final = b"CGMDv2:\x07\x00\x00\x00card\x00member-1\x00\x01"
SETTINGS: Final = Settings(transaction_client="batched")
_NUMBERS = count()


class World:
    """A model, and the writer of a session on it."""

    def __init__(self, *, is_v2: bool = True, brokers: int = 1, producers: int = 2) -> None:
        self._patch = pytest.MonkeyPatch()
        for module, name, value in (
            (transaction_brokers, "_FIRST_BACKOFF_S", 0.0),
            (transaction_brokers, "_MOST_BACKOFF_S", 0.0),
            (transactions, "BATCH_RETRY_S", 0.0),
        ):
            self._patch.setattr(module, name, value)
        self.cluster = ModelCluster(COUNTS, is_v2=is_v2, brokers=brokers)
        address = f"model-{next(_NUMBERS)}"
        install(self._patch, address, self.cluster)
        self.renewals: list[None] = []
        self.producers = TransactionalProducers(
            address, SETTINGS, "card", stopping=threading.Event(), waiting=lambda: None,
            renewed=lambda: self.renewals.append(None), marks=True, producers=producers,
        )  # fmt: skip
        self.writer = TransactionalWriter(SETTINGS, "card", self.producers, threading.Event(), lambda: None, dict)
        self.producers.start()
        self.written: defaultdict[Partition, list[bytes]] = defaultdict(list)
        self._marks = count(1)

    def __enter__(self) -> "World":
        return self

    def __exit__(self, *_: object) -> None:
        self.producers.close()
        self._patch.undo()

    def befall(self, kind: str, *faults: Fault) -> None:
        self.cluster.faults[kind].extend(faults)

    def commit(self, records: int = 4, offsets: int = 1) -> str:
        """Commit some records and offsets; return how that ended, and check that all or nothing of it is there."""
        mark = next(self._marks)
        outputs = [Output(PROFILED, None, b"%d-%d" % (mark, n), (), n % 2) for n in range(records)]
        outputs += [Output(PROGRESS, b"k", b"%d" % mark, (), 1)] * bool(records)
        at = [TopicPartition("transactions", n, mark, f"mark-{mark}") for n in range(offsets)]
        ended = "committed"
        try:
            self.writer.commit(outputs, at, GROUP_METADATA)
        except (Aborted, OutputTooLarge, Unknown, SessionError) as error:
            ended = type(error).__name__
        known = self.cluster.offsets.get(("transactions", 0), (0, ""))[0]
        if ended == "committed" or (ended == "Unknown" and known == mark):
            assert not offsets or self.cluster.offsets["transactions", offsets - 1] == (mark, f"mark-{mark}\0")
            for output in outputs:
                assert output.partition is not None
                self.written[output.topic.name, output.partition].append(output.value or b"")
        else:
            assert known != mark
        found = {partition: values for partition, values in self.cluster.committed.items() if values}
        assert found == self.written
        return ended


@pytest.mark.parametrize("is_v2", [True, False])
@pytest.mark.parametrize("brokers", [1, 3])
def test_one_produce_a_broker_and_no_registration_under_version_2(is_v2: bool, brokers: int) -> None:
    with World(is_v2=is_v2, brokers=brokers) as world:
        # Each producer first looks for brokers.
        assert [world.commit(), world.commit()] == ["committed"] * 2
        world.cluster.asked.clear()
        assert world.commit() == "committed"
        registers = Counter() if is_v2 else Counter(AddPartitionsToTxn=1, AddOffsetsToTxn=1)
        led = len({world.cluster.leaders[at] for at in ((PROFILED.name, 0), (PROFILED.name, 1), (PROGRESS.name, 1))})
        assert world.cluster.asked == Counter(Produce=led, TxnOffsetCommit=1, EndTxn=1) + registers
        assert world.writer.marked() == {1: 3}
        assert not world.renewals


def test_a_topic_that_is_rarely_written_is_described_anew_with_the_others() -> None:
    with World(producers=1) as world:
        client = world.producers.current

        def partition_of_key() -> set[Partition]:
            before = {at: len(values) for at, values in world.cluster.committed.items()}
            for topic in (DECISIONS.name, PROFILED.name):
                client.begin_transaction()
                client.produce(topic, b"value", b"card-1", -1, None, None, 0, None)
                client.commit_transaction(5.0)
            grown = {at for at, values in world.cluster.committed.items() if len(values) > before.get(at, 0)}
            return {at for at in grown if at[0] == DECISIONS.name}

        partition_of_key()
        world.cluster.counts[DECISIONS.name] = 50
        world.cluster.leaders |= {(DECISIONS.name, number): 0 for number in range(50)}
        client._brokers._described_s -= transaction_brokers._DESCRIBED_S
        client.begin_transaction()
        client.produce(PROFILED.name, b"value", b"card-1", -1, None, None, 0, None)
        client.commit_transaction(5.0)
        assert partition_of_key() == {(DECISIONS.name, keyed_partitions([b"card-1"], 50)[0])}


PASSING: Final = (
    KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE, KafkaError.NOT_ENOUGH_REPLICAS,
    KafkaError.REQUEST_TIMED_OUT, KafkaError.CONCURRENT_TRANSACTIONS, KafkaError.UNKNOWN_TOPIC_OR_PART,
    Mishap.LOST, Mishap.UNANSWERED,
)  # fmt: skip
COORDINATING: Final = (
    KafkaError.NOT_COORDINATOR, KafkaError.COORDINATOR_NOT_AVAILABLE, KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.CONCURRENT_TRANSACTIONS, Mishap.LOST, Mishap.UNANSWERED,
)  # fmt: skip


@pytest.mark.parametrize("is_v2", [True, False])
@pytest.mark.parametrize(
    ("kind", "fault"),
    [*(("Produce", fault) for fault in PASSING)]
    + [(kind, fault) for kind in ("TxnOffsetCommit", "EndTxn") for fault in COORDINATING]
    + [(kind, fault) for kind in ("AddPartitionsToTxn", "AddOffsetsToTxn") for fault in COORDINATING],
)
def test_what_passes_is_asked_again(kind: str, fault: Fault, is_v2: bool) -> None:
    with World(is_v2=is_v2, brokers=2) as world:
        world.befall(kind, fault, fault)
        assert world.commit() == "committed"
        assert not world.renewals
        world.cluster.faults.clear()
        assert world.commit() == "committed"


@pytest.mark.parametrize("is_v2", [True, False])
@pytest.mark.parametrize(
    ("kind", "code", "ended"),
    [
        ("Produce", KafkaError.INVALID_PRODUCER_EPOCH, "Aborted"),
        ("Produce", KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER, "Aborted"),
        ("Produce", KafkaError.TRANSACTION_ABORTABLE, "Aborted"),
        ("Produce", KafkaError.TOPIC_AUTHORIZATION_FAILED, "Aborted"),
        ("Produce", KafkaError.MSG_SIZE_TOO_LARGE, "OutputTooLarge"),
        ("TxnOffsetCommit", KafkaError.ILLEGAL_GENERATION, "Aborted"),
        ("TxnOffsetCommit", KafkaError.FENCED_INSTANCE_ID, "Aborted"),
        ("TxnOffsetCommit", KafkaError.PRODUCER_FENCED, "Aborted"),
        ("TxnOffsetCommit", KafkaError.GROUP_AUTHORIZATION_FAILED, "Aborted"),
        ("EndTxn", KafkaError.PRODUCER_FENCED, "Unknown"),
        ("EndTxn", KafkaError.INVALID_PRODUCER_EPOCH, "Unknown"),
        ("EndTxn", KafkaError.INVALID_TXN_STATE, "Unknown"),
        ("EndTxn", KafkaError.INVALID_PRODUCER_ID_MAPPING, "Unknown"),
    ],
)
def test_what_does_not_pass_ends_the_transaction_and_the_next_one_goes_on(
    kind: str, code: int, ended: str, is_v2: bool
) -> None:
    with World(is_v2=is_v2) as world:
        assert world.commit() == "committed"
        world.befall(kind, code)
        assert world.commit() == ended
        assert world.commit() == "committed"
        assert world.commit() == "committed"


@pytest.mark.parametrize("is_v2", [True, False])
@pytest.mark.parametrize("first", [Mishap.UNANSWERED, Late(1), KafkaError.REQUEST_TIMED_OUT])
def test_what_a_broker_may_have_of_an_aborted_transaction_is_not_taken_for_the_next_one(
    first: Fault, is_v2: bool
) -> None:
    """Under version 1 the next one could have the same epoch and sequence numbers, and would pass for a repetition."""
    with World(is_v2=is_v2, producers=1) as world:
        assert world.commit() == "committed"
        world.befall("Produce", first, KafkaError.TRANSACTION_ABORTABLE)
        assert world.commit() == "Aborted"
        assert bool(world.renewals) is not is_v2
        assert [world.commit(), world.commit()] == ["committed"] * 2


@pytest.mark.parametrize("is_v2", [True, False])
@pytest.mark.parametrize("kind", ["TxnOffsetCommit", "EndTxn"])
@pytest.mark.parametrize("requests", range(1, 9))
def test_what_was_given_up_does_not_count_for_the_next_transaction(requests: int, kind: str, is_v2: bool) -> None:
    """Under version 1 it has the same epoch, unless a new client takes over."""
    with World(is_v2=is_v2, producers=1) as world:
        assert world.commit() == "committed"
        world.befall(kind, Late(requests))
        assert [world.commit() for _ in range(4)] == ["committed"] * 4
        assert bool(world.renewals) is not is_v2


def test_brokers_that_are_too_old_are_named() -> None:
    with World() as world:
        world.cluster.newest_versions = {0: 8, 26: 2, 28: 3}
        with pytest.raises(SessionError, match=r"older than Kafka 2\.8.*librdkafka"):
            world.producers.start()


def test_whoever_left_the_group_commits_nothing() -> None:
    with World() as world:
        world.cluster.members = {(8, "member-1")}
        assert world.commit() == "Aborted"
        assert not world.renewals
        world.cluster.members = {(7, "member-1")}
        assert world.commit() == "committed"


@pytest.mark.parametrize("is_v2", [True, False])
def test_a_mark_shows_how_a_transaction_ended_whose_answer_is_lost(
    is_v2: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transactions, "CALL_TIMEOUT_S", 0.05)
    monkeypatch.setattr(transactional_producers, "CALL_TIMEOUT_S", 0.05)
    with World(is_v2=is_v2) as world:
        world.befall("EndTxn", Mishap.UNANSWERED, *[Mishap.LOST] * 100_000)
        assert world.commit() == "Unknown"
        assert world.renewals
        world.cluster.faults.clear()
        assert world.commit() == "committed"


def test_brokers_that_are_away_end_the_transaction_and_a_new_client_takes_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transactions, "CALL_TIMEOUT_S", 0.05)
    monkeypatch.setattr(transactional_producers, "CALL_TIMEOUT_S", 0.05)
    with World() as world:
        world.cluster.is_away = True
        original = world.producers.renew

        def renew(reason: str) -> None:
            world.cluster.is_away = False
            original(reason)

        monkeypatch.setattr(world.producers, "renew", renew)
        assert world.commit() == "Aborted"
        assert not world.producers.reachable or world.renewals
        assert world.commit() == "committed"


def test_what_a_wait_raises_ends_the_call_and_nothing_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended(Exception):
        pass

    def waiting() -> None:
        raise Ended

    monkeypatch.setattr(call_loop, "_LOOK_S", 0.01)
    with World() as world:
        client = world.producers.current
        monkeypatch.setattr(client._loop, "_waiting", waiting)
        world.befall("Produce", *[Mishap.LOST] * 100_000)
        client.begin_transaction()
        client.produce(PROFILED.name, b"v", None, 0, None, None, 0, None)
        with pytest.raises(Ended):
            client.commit_transaction(10.0)


def test_a_transaction_is_open_once_and_takes_nothing_behind_what_is_written() -> None:
    with World() as world:
        client = world.producers.current
        record = (PROFILED.name, b"v", None, 0, None, None, 0, None)
        client.begin_transaction()
        with pytest.raises(KafkaException, match="has not ended"):
            client.begin_transaction()
        client.produce(*record)
        client.send_offsets_to_transaction([TopicPartition("transactions", 0, 1)], GROUP_METADATA, 10.0)
        with pytest.raises(KafkaException, match="written already"):
            client.produce(*record)
        # Asked for again behind a time limit, and done already.
        client.send_offsets_to_transaction([TopicPartition("transactions", 0, 1)], GROUP_METADATA, 10.0)
        client.commit_transaction(10.0)
        assert world.cluster.committed[PROFILED.name, 0] == [b"v"]
        assert world.cluster.asked["TxnOffsetCommit"] == 1
        assert world.cluster.offsets == {("transactions", 0): (1, "")}


FAULTS: Final = strategies.tuples(
    strategies.sampled_from(
        ["Produce", "TxnOffsetCommit", "EndTxn", "AddPartitionsToTxn", "AddOffsetsToTxn", "InitProducerId"]
    ),
    strategies.sampled_from(
        [
            *Mishap, *map(Late, range(1, 9)), KafkaError.NOT_COORDINATOR, KafkaError.CONCURRENT_TRANSACTIONS,
            KafkaError.REQUEST_TIMED_OUT,
            KafkaError.TRANSACTION_ABORTABLE, KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.ILLEGAL_GENERATION,
            KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        ]
    ),
)  # fmt: skip


@given(
    is_v2=strategies.booleans(),
    brokers=strategies.integers(1, 3),
    producers=strategies.integers(1, 2),
    transactions_=strategies.lists(
        strategies.tuples(strategies.integers(0, 6), strategies.integers(1, 2), strategies.lists(FAULTS, max_size=4)),
        max_size=12,
    ),
)
def test_records_and_offsets_count_once_or_not_at_all_whatever_befalls_their_requests(
    is_v2: bool, brokers: int, producers: int, transactions_: Sequence[tuple[int, int, Sequence[tuple[str, Fault]]]]
) -> None:
    with World(is_v2=is_v2, brokers=brokers, producers=producers) as world:
        for records, offsets, faults in transactions_:
            for kind, fault in faults:
                # One that is done later still fences its own producer: nothing counts, and another one takes over.
                if kind != "InitProducerId" or fault in (*Mishap, Late(1), KafkaError.CONCURRENT_TRANSACTIONS):
                    world.befall(kind, fault)
            ended = world.commit(records, offsets)
            if ended == "SessionError":
                return
        world.cluster.faults.clear()
        assert world.commit() == "committed"
