"""What a session promises of outputs, offsets and state, against a real broker."""

import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import pytest
from aiokafka.protocol.transaction import EndTxnRequest
from confluent_kafka import (
    Consumer,
    ConsumerGroupTopicPartitions,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Producer,
    TopicPartition,
)

from pipeline.engine.records.results import Result
from pipeline.kafka.cluster.admin import ensure_topics
from pipeline.kafka.cluster.clients import (
    MAX_RECORD_BYTES,
    GroupProtocol,
    admin_client,
    consumer_config,
    producer_config,
)
from pipeline.kafka.cluster.errors import Aborted, OutputTooLarge, SessionError
from pipeline.kafka.cluster.log_offsets import last_offsets
from pipeline.kafka.cluster.retries import Retries
from pipeline.kafka.readers.topic_reader import read_topic
from pipeline.kafka.records.batch import Batch
from pipeline.kafka.records.member import Member
from pipeline.kafka.session.attempts import Committed, Mark, read_mark
from pipeline.kafka.session.offsets import CommittedOffsets
from pipeline.kafka.session.session import Session, batch_markers
from pipeline.kafka.session.state_handler import Restored
from pipeline.kafka.writers.transaction_brokers import TransactionBrokers
from pipeline.kafka.writers.transactions import FENCED, MOST_ABORTS, TransactionalWriter
from pipeline.kafka.writers.unfinished_transactions import end_unfinished
from pipeline.settings import Settings
from schemas.messages import ProcessingConfig
from schemas.records import Output, Record
from schemas.topics import DECISIONS, LABELS, PROFILED, TOPICS, TRANSACTIONS
from tests.helpers.offsets import committed_offsets
from tests.helpers.topics import shared_producer
from tests.helpers.waiting import TIMEOUT_S, eventually

pytestmark = pytest.mark.broker

BROKER_REFUSES = PROFILED.max_message_bytes + 1_000_000
"""Bytes of an output that this client accepts and the broker does not."""
READS = (TRANSACTIONS, LABELS)


class Numbers:
    """State that is a list of the record values of each partition; a batch is pending until it is committed."""

    def __init__(self, config: ProcessingConfig | None = None) -> None:
        self.config = config
        self.configs: list[ProcessingConfig | None] = []
        self.committed: dict[int, list[bytes]] = {}
        self.pending: dict[int, list[bytes]] = {}
        self.replayed: list[list[bytes]] = []

    def assigning(self, waiting: Callable[[], None]) -> None:
        """Nothing to prepare."""

    def restore(
        self, partition: int, committed: Mapping[str, int], logs: Mapping[str, range], waiting: Callable[[], None]
    ) -> Restored | None:
        self.committed[partition] = []
        return None

    def replay(self, partition: int, records: Sequence[Record], config: ProcessingConfig | None) -> None:
        values = [record.value or b"" for record in records]
        self.configs.append(config)
        self.committed[partition] += values
        self.replayed.append(values)

    def state_beside(self, partition: int) -> Any:
        return None

    def load_beside(self, partition: int, state: Any) -> None:
        assert state is None

    def restored(self, partition: int, records: int) -> None:
        assert len(self.committed[partition]) == records

    def forget(self, partition: int) -> None:
        self.committed.pop(partition, None)

    def commit(self, partitions: Collection[int]) -> None:
        for partition in partitions:
            self.committed[partition] += self.pending.pop(partition, [])

    def rollback(self, partitions: Collection[int]) -> None:
        for partition in partitions:
            self.pending.pop(partition, None)

    def process(self, batch: Batch) -> list[Output]:
        outputs = []
        for record in batch.records:
            self.pending.setdefault(record.partition, []).append(record.value or b"")
            outputs.append(Output(DECISIONS, record.key, record.value))
        return outputs


class Removed(Numbers):
    """State that is gone, as where somebody removes its directory, by the second record."""

    def commit(self, partitions: Collection[int]) -> None:
        super().commit(partitions)
        if len(held(self)) > 1:
            raise FileNotFoundError("the state was removed")


class Refusing(Numbers):
    """State whose records all become dead letters too, which bear out what markers say was read."""

    def process(self, batch: Batch) -> list[Output]:
        refused = Result()
        for record in batch.records:
            refused.dead_letter(record, "card", "not_json", "It is no JSON.")
        return [*super().process(batch), *refused.outputs]


class Overtaken(Numbers):
    """State of partitions that another member reads to their ends while they are restored for the first time."""

    session: Session | None = None
    overtakes: int = 0

    def restored(self, partition: int, records: int) -> None:
        super().restored(partition, records)
        if self.overtakes:
            self.overtakes -= 1
            assert self.session is not None
            self.overtake(self.session, partition)

    def overtake(self, session: Session, partition: int) -> None:
        metadata, member = session._client.group_metadata(), session._member
        at = (member.settings.topic(TRANSACTIONS.name), partition)
        end = last_offsets(admin_client(member.bootstrap), [at], IsolationLevel.READ_COMMITTED)[at]
        batch = Batch([], metadata, {at: 0}, {at: end})
        session._write(batch_markers(member, batch, None), {at: (end, Mark("other/0"))}, metadata)


@pytest.fixture
def client() -> str:
    """Name of the client that writes transactions; a test may name another one."""
    return "batched"


@pytest.fixture
def settings(kafka_settings: Settings, client: str) -> Settings:
    settings = kafka_settings.model_copy(
        update={"card_partitions": 2, "merchant_partitions": 2, "transaction_client": client}
    )
    ensure_topics(servers(settings), settings, TOPICS)
    return settings


def servers(settings: Settings) -> str:
    assert settings.kafka_bootstrap_servers is not None
    return settings.kafka_bootstrap_servers


@contextmanager
def session(
    settings: Settings, handler: Numbers, protocol: GroupProtocol = "consumer", **options: Any
) -> Iterator[Session]:
    with ExitStack() as stack:
        made = Session(servers(settings), settings, "card", READS, handler, group_protocol=protocol, **options)
        stack.callback(made.close)
        made.start()
        yield made


def write(settings: Settings, values: Sequence[str], topic: str = TRANSACTIONS.name) -> None:
    producer = shared_producer(servers(settings))
    for value in values:
        producer.produce(settings.topic(topic), value.encode(), f"k{value}".encode(), timestamp=1_700_000_000_000)
    assert producer.flush(TIMEOUT_S) == 0


def output_of(size: int) -> Output:
    """An output of so many bytes, which do not compress."""
    return Output(PROFILED, b"k", random.Random(0).randbytes(size))


def work(session: Session, handler: Numbers, done: Callable[[], bool]) -> None:
    def step() -> None:
        batch = session.poll(0.1)
        if batch is not None:
            session.commit(batch, handler.process(batch))

    eventually(done, step)


def polled(session: Session) -> Batch:
    deadline_s = time.monotonic() + TIMEOUT_S
    while (batch := session.poll(0.1)) is None:
        assert time.monotonic() < deadline_s, "no batch came"
    return batch


def decided(settings: Settings) -> list[bytes]:
    records = read_topic(servers(settings), settings.topic(DECISIONS.name), settings=settings)
    return sorted(record.value or b"" for record in records)


def held(handler: Numbers) -> list[bytes]:
    return sorted(value for values in handler.committed.values() for value in values)


def test_what_another_member_commits_while_partitions_are_restored_is_not_done_again(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    handler = Overtaken()
    write(settings, [str(number) for number in range(20)])
    with session(settings, handler) as opened:
        handler.session, handler.overtakes = opened, 2
        work(opened, handler, lambda: len(held(handler)) == 20)
        assert decided(settings) == []
        write(settings, ["a"])
        work(opened, handler, lambda: len(held(handler)) == 21)
    assert decided(settings) == [b"a"]
    assert "another member had them while they were restored" in caplog.text


def test_offsets_that_another_member_has_moved_are_not_released(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler, names = Overtaken(), [settings.topic(TRANSACTIONS.name)]
    write(settings, [str(number) for number in range(20)])
    with session(settings, Numbers()) as before:
        work(before, before._handler, lambda: sum(before.committed.values()) == 20)
    write(settings, ["a", "a"])
    # As where the group takes the partitions away at once, before the session can join anew.
    monkeypatch.setattr(Session, "_rejoined", lambda _: False)
    with session(settings, handler) as opened:
        handler.session, handler.overtakes = opened, 2
        eventually(lambda: not handler.overtakes, lambda: opened.hold(0.1))
        assert opened._client.fatal
        overtaken = committed_offsets(servers(settings), settings.topic("card"), names, settings=settings)
    assert committed_offsets(servers(settings), settings.topic("card"), names, settings=settings) == overtaken


def test_a_transaction_whose_end_nobody_answers_is_not_set_back_by_a_worker_that_ends(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, unanswered = TransactionBrokers.answer, set[str]()

    async def answer(self: TransactionBrokers, address: Any, request: Any) -> Any:
        found = await original(self, address, request)
        if request.API_KEY != EndTxnRequest.API_KEY:
            return found
        # Of the first end, and what repeats it.
        unanswered.update(request.values[:1] if not unanswered else ())
        return None if request.values[0] in unanswered else found

    handler = Numbers()
    with session(settings, handler, producers=2) as opened:
        write(settings, ["a"])
        work(opened, handler, lambda: len(held(handler)) == 1)
        write(settings, ["a"])
        batch = polled(opened)
        monkeypatch.setattr(TransactionBrokers, "answer", answer)
        opened.stop()
        with pytest.raises(SessionError):
            opened.commit(batch, handler.process(batch))
    monkeypatch.undo()
    second = Numbers()
    with session(settings, second) as opened:
        write(settings, ["a"])
        work(opened, second, lambda: len(held(second)) == 3)
    assert decided(settings) == [b"a"] * 3


def test_a_state_that_fails_behind_its_transaction_sets_no_offset_back(settings: Settings) -> None:
    handler = Removed()
    with session(settings, handler) as failing:
        write(settings, ["a"])
        work(failing, handler, lambda: len(held(handler)) == 1)
        write(settings, ["a"])
        with pytest.raises(FileNotFoundError):
            work(failing, handler, lambda: False)
    name = settings.topic(TRANSACTIONS.name)
    committed = committed_offsets(servers(settings), settings.topic("card"), [name], settings=settings)
    assert (sum(committed.values()), decided(settings)) == (2, [b"a", b"a"])


@pytest.mark.parametrize(
    ("delivery", "client"),
    [("exactly_once", "batched"), ("exactly_once", "librdkafka"), ("at_least_once", "librdkafka")],
)
@pytest.mark.parametrize("too_large", [BROKER_REFUSES, MAX_RECORD_BYTES + 1])
def test_an_output_that_nobody_takes_is_the_fault_of_what_was_read(
    settings: Settings, delivery: str, too_large: int
) -> None:
    settings, handler = settings.model_copy(update={"delivery": delivery}), Numbers()
    write(settings, ["1", "2", "3"])
    renewals: list[None] = []
    with session(settings, handler, renewed=lambda: renewals.append(None)) as opened:
        batch = polled(opened)
        # More often than a batch may be aborted: one by one is how the record is found.
        for _ in range(MOST_ABORTS + 2):
            large = output_of(too_large)
            with pytest.raises(OutputTooLarge, match="too large"):
                opened.commit(batch, [large, *handler.process(batch)])
            assert held(handler) == []
            assert not handler.pending
        # What this client refuses itself leaves no gap in a transaction's numbers, and costs no producer.
        here = delivery == "exactly_once" and too_large > MAX_RECORD_BYTES
        assert len(renewals) == (0 if here else MOST_ABORTS + 2)
        opened.commit(batch, handler.process(batch))
        work(opened, handler, lambda: len(held(handler)) == 3)
        assert held(handler) == [b"1", b"2", b"3"]
        if delivery == "exactly_once":
            assert decided(settings) == held(handler)


@pytest.mark.parametrize("client", ["librdkafka"])
def test_the_cause_is_found_where_a_call_says_only_that_the_transaction_has_failed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(self: TransactionalWriter, *_: object) -> None:
        # As librdkafka does where the broker refuses a record while the offsets are under way.
        self._producers.current.flush(TIMEOUT_S)
        raise KafkaException(KafkaError(KafkaError._STATE, "Erroneous state", txn_requires_abort=True))

    handler = Numbers()
    write(settings, ["1", "2", "3"])
    with session(settings, handler) as opened:
        batch = polled(opened)
        with monkeypatch.context() as patched:
            patched.setattr(TransactionalWriter, "_send_offsets", late)
            with pytest.raises(OutputTooLarge, match="profiled"):
                opened.commit(batch, [output_of(BROKER_REFUSES)])
            with pytest.raises(Aborted, match="Erroneous state"):
                opened.commit(batch, handler.process(batch))
        work(opened, handler, lambda: len(held(handler)) == 3)
        assert decided(settings) == held(handler)


@pytest.mark.parametrize("client", ["librdkafka"])
def test_the_cause_is_found_where_records_follow_one_that_the_broker_has_refused(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = TransactionalWriter._produce

    def slowly(self: TransactionalWriter, outputs: Sequence[Output]) -> None:
        for output in outputs:
            original(self, [output])
            self._producers.current.flush(TIMEOUT_S)

    handler = Numbers()
    write(settings, ["1", "2", "3"])
    with session(settings, handler) as opened:
        batch = polled(opened)
        with monkeypatch.context() as patched:
            patched.setattr(TransactionalWriter, "_produce", slowly)
            with pytest.raises(OutputTooLarge, match="profiled"):
                opened.commit(batch, [output_of(BROKER_REFUSES), *handler.process(batch)])
        opened.commit(batch, handler.process(batch))
        work(opened, handler, lambda: len(held(handler)) == 3)
        assert decided(settings) == held(handler)


def marks(settings: Settings) -> dict[tuple[str, int], Committed]:
    """What stands beside the committed offsets of transactions."""
    reader = Consumer(consumer_config(servers(settings), settings.topic("card"), settings=settings, protocol="classic"))
    topic = settings.topic(TRANSACTIONS.name)
    found = reader.committed([TopicPartition(topic, number) for number in (0, 1)], TIMEOUT_S)
    reader.close()
    return {(at.topic, at.partition): Committed(at.offset, read_mark(at.metadata)) for at in found}


@pytest.mark.parametrize(("delivery", "protocol"), [("exactly_once", "consumer"), ("at_least_once", "classic")])
def test_partitions_move_whole_and_are_released_where_they_are_given_up_in_order(
    settings: Settings, delivery: str, protocol: GroupProtocol
) -> None:
    settings, handler = settings.model_copy(update={"delivery": delivery}), Numbers()
    other = settings.model_copy(update={"instance": "other"})
    write(settings, [str(number) for number in range(20)])
    with session(settings, handler, protocol) as opened:
        work(opened, handler, lambda: len(held(handler)) == 20)
        assert all(at.mark is not None and at.mark.commit and not at.mark.released for at in marks(settings).values())
        second = Numbers()
        with session(other, second, protocol) as two:
            eventually(
                lambda: len(opened.assigned) == len(two.assigned) == 2 and not two._careful.plan.active,
                lambda: (opened.poll(0.05), two.poll(0.05)),
            )
            numbers = [{number for _, number in member.assigned} for member in (opened, two)]
            assert (numbers[0] | numbers[1], numbers[0] & numbers[1]) == ({0, 1}, set())
            assert sorted([*held(handler), *held(second)]) == sorted(str(number).encode() for number in range(20))
            # The second one has put its own mark in the release's place, and needs no care.
            taken = {place: at.mark for place, at in marks(settings).items() if place in two.assigned}
            assert {place for place in two.assigned if place[0] == settings.topic(TRANSACTIONS.name)} <= taken.keys()
            assert all(mark is not None and not mark.released and mark.attempt is None for mark in taken.values())
    assert {at.mark for at in marks(settings).values()} == {Mark(released=True)}


def test_partitions_are_released_though_a_member_that_left_has_changed_the_generation(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler, other = Numbers(), settings.model_copy(update={"instance": "other"})
    write(settings, [str(number) for number in range(20)])
    with session(settings, handler) as opened:
        work(opened, handler, lambda: len(held(handler)) == 20)
        current = opened._client.group_metadata
        known = [current()]
        with session(other, Numbers()) as two:
            eventually(
                lambda: len(opened.assigned) == len(two.assigned) == 2, lambda: (opened.poll(0.05), two.poll(0.05))
            )
        eventually(lambda: len(opened.assigned) == 4, lambda: opened.poll(0.05))
        # The client learns of a generation by its next heartbeat.
        monkeypatch.setattr(opened._client, "group_metadata", lambda: known.pop() if known else current())
    assert {at.mark for at in marks(settings).values()} == {Mark(released=True)}


@pytest.mark.parametrize("client", ["batched", "librdkafka"])
def test_a_rival_of_the_same_name_ends_the_worker_that_is_fenced_again(settings: Settings) -> None:
    first, second = Numbers(), Numbers()
    with session(settings, first) as opened, session(settings, second) as two:
        write(settings, [str(number) for number in range(20)])

        def both() -> None:
            deadline_s = time.monotonic() + TIMEOUT_S
            number = 100
            while time.monotonic() < deadline_s:
                number += 1
                write(settings, [str(number), str(number + 1_000)])
                for member, handler in ((opened, first), (two, second)):
                    batch = member.poll(0.1)
                    if batch is not None:
                        try:
                            member.commit(batch, handler.process(batch))
                        except Aborted:
                            continue

        with pytest.raises(SessionError, match="--instance"):
            both()
    values = decided(settings)
    assert len(values) == len(set(values))


def delete_below(settings: Settings, offsets: Mapping[tuple[str, int], int]) -> None:
    client = admin_client(servers(settings))
    at = [TopicPartition(*place, offset) for place, offset in offsets.items()]
    for future in client.delete_records(at).values():
        future.result(TIMEOUT_S)


def test_records_that_were_deleted_before_they_were_read_are_passed_over_where_the_settings_say_so(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    topics = [settings.topic(topic.name) for topic in READS]
    with session(settings, Numbers()) as opened:
        handler = opened._handler
        assert isinstance(handler, Numbers)
        write(settings, [str(number) for number in range(20)])
        work(opened, handler, lambda: len(held(handler)) == 20)
    committed = committed_offsets(servers(settings), settings.topic("card"), topics)
    write(settings, [str(number) for number in range(20, 60)])
    # Also of what a replay would read: nothing but the state lacks it.
    delete_below(settings, {place: offset + 2 for place, offset in committed.items()})
    with session(settings, Numbers()) as refused, pytest.raises(SessionError, match="ACCEPT_LOST_RECORDS=true"):
        polled(refused)

    class Kept(Numbers):
        """State with a snapshot from the very beginning, but for one record."""

        def restore(
            self, partition: int, committed: Mapping[str, int], logs: Mapping[str, range], waiting: Callable[[], None]
        ) -> Restored | None:
            super().restore(partition, committed, logs, waiting)
            return Restored(dict.fromkeys(committed, 1), 0)

    accepting, handler = settings.model_copy(update={"accept_lost_records": True}), Kept()
    with session(accepting, handler) as opened:
        work(opened, handler, lambda: len(held(handler)) == 40 - 2 * len(committed))
    for (topic, number), offset in committed.items():
        assert f"{topic} partition {number}: offsets {offset} to {offset + 1} were deleted" in caplog.text
    assert len(decided(settings)) == 60 - 2 * len(committed)
    again = Numbers()
    with session(settings, again) as opened:
        work(opened, again, lambda: len(opened.assigned) == 4)


def test_what_the_last_holder_committed_is_there_when_partitions_come(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    committed = CommittedOffsets.read

    def ask(self: CommittedOffsets, *arguments: Any) -> dict[tuple[str, int], Committed]:
        asked.append("committed")
        return committed(self, *arguments)

    class Watching(Numbers):
        def assigning(self, waiting: Callable[[], None]) -> None:
            asked.append("assigning")

    monkeypatch.setattr(CommittedOffsets, "read", ask)
    handler = Watching()
    with session(settings, handler) as opened:
        work(opened, handler, lambda: len(opened.assigned) == 4)
        assert asked[:2] == ["committed", "assigning"]
        # What comes while the worker ends is taken on by nobody: its coordinator, which may be away, is not asked.
        asked.clear()
        opened.stop()
        moved = [TopicPartition(settings.topic(topic.name), 0) for topic in READS]
        opened._assignment.on_revoke(opened._client.consumer, moved)
        opened._assignment.on_assign(opened._client.consumer, moved)
        assert (asked, len(opened.assigned)) == ([], 2)


def test_offsets_that_a_coordinator_has_forgotten_are_not_taken_for_none(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is read again; and work goes on once they are known again."""
    handler = Refusing()
    write(settings, [str(number) for number in range(20)])
    with session(settings, handler) as first:
        work(first, handler, lambda: sum(map(len, handler.committed.values())) >= 20)
    group = settings.topic("card")
    known = committed_offsets(servers(settings), group, [settings.topic(topic.name) for topic in READS])
    admin = admin_client(servers(settings))
    admin.delete_consumer_groups([group])[group].result()
    monkeypatch.setattr("pipeline.kafka.session.offsets.FORGETFUL_S", 1.0)
    with (
        session(settings, Numbers()) as second,
        pytest.raises(SessionError, match=r"older offsets, or none, .*transactions"),
    ):
        work(second, Numbers(), lambda: False)
    monkeypatch.setattr("pipeline.kafka.session.offsets.FORGETFUL_S", TIMEOUT_S)
    handler = Numbers()
    write(settings, [str(number) for number in range(20, 25)])
    with session(settings, handler) as third:
        forgetful = iter(range(2 * len(known)))

        def reported(_: Consumer, partitions: Collection[tuple[str, int]]) -> dict[tuple[str, int], Committed]:
            return {at: Committed(known.get(at, 0) if next(forgetful, None) is None else 0, None) for at in partitions}

        monkeypatch.setattr(third._offsets, "from_coordinator", reported)
        work(third, handler, lambda: sum(map(len, handler.committed.values())) >= 25)
    assert decided(settings) == sorted(str(number).encode() for number in range(25))


def test_offsets_that_stay_unstable_are_waited_for_and_the_log_says_where_to_look(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pipeline.kafka.cluster.retries.HANGING_S", 0.3)

    class Unstable(Consumer):
        def committed(self, *arguments: Any, **more: Any) -> Any:
            if "a transaction may hang" not in caplog.text:
                raise KafkaException(KafkaError(KafkaError.UNSTABLE_OFFSET_COMMIT))
            return super().committed(*arguments, **more)

    monkeypatch.setattr("pipeline.kafka.readers.group_client.Consumer", Unstable)
    write(settings, ["1", "2", "3"])
    handler = Numbers()
    with session(settings, handler) as opened:
        work(opened, handler, lambda: len(held(handler)) == 3)
    assert decided(settings) == [b"1", b"2", b"3"]


@pytest.mark.parametrize("when", ["assigned", "revoked"])
def test_what_a_rebalance_raises_in_the_client_leaves_the_poll_as_it_was_raised(settings: Settings, when: str) -> None:
    class Failing(Numbers):
        def assigning(self, waiting: Callable[[], None]) -> None:
            if when == "assigned":
                opened._client.consumer.seek(TopicPartition("no such topic", 0, 5))

        def forget(self, partition: int) -> None:
            if when == "revoked" and partition in self.committed:
                super().forget(partition)
                opened._client.consumer.seek(TopicPartition("no such topic", 0, 5))

    handler = Failing()
    opened = Session(servers(settings), settings, "card", READS, handler)
    opened.start()

    def rebalance() -> None:
        work(opened, handler, lambda: len(opened.assigned) == 4)
        opened._client.consumer.unsubscribe()
        work(opened, handler, lambda: not opened.assigned)

    with pytest.raises(KafkaException, match="Unknown partition"):
        rebalance()
    opened.close()


def reset_offsets(settings: Settings, offsets: Mapping[tuple[str, int], int]) -> None:
    group = settings.topic("card")
    to = [TopicPartition(*place, offset) for place, offset in offsets.items()]
    admin = admin_client(servers(settings))
    admin.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(group, to)])[group].result()


def test_a_batch_whose_results_are_ahead_of_its_offsets_stops_nobody(settings: Settings) -> None:
    """A worker that delivers at least once can die between the two, and one that delivers exactly once follow it."""
    handler = Numbers()
    before = settings.model_copy(update={"delivery": "at_least_once"})
    with session(before, handler) as opened:
        write(settings, [str(number) for number in range(10)])
        work(opened, handler, lambda: len(held(handler)) == 10)
        write(settings, [str(number) for number in range(10, 20)])
        batch = polled(opened)
        opened.commit(batch, handler.process(batch))
    reset_offsets(settings, batch.starts)
    handler = Numbers()
    with session(settings, handler) as two:
        work(two, handler, lambda: len(held(handler)) == 20)


def test_a_client_that_cannot_go_on_is_replaced_and_nothing_is_done_twice(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.kafka.session.session.MOST_REJOINS", 1)
    handler = Numbers()
    write(settings, [str(number) for number in range(10)])
    with session(settings, handler) as opened:
        work(opened, handler, lambda: len(held(handler)) >= 10)
        for number in (10, 11):
            opened._client.fatal.append("no such group")
            write(settings, [str(number)])
            work(opened, handler, lambda: len(held(handler)) > number)  # noqa: B023
        assert held(handler) == decided(settings) == sorted(str(number).encode() for number in range(12))
        opened._client.fatal.append("no such group")
        assert opened.poll(0.1) is None
        opened._client.fatal.append("no such group")
        with pytest.raises(SessionError, match="no such group"):
            opened.poll(0.1)


LONG_OPEN = {"transaction.timeout.ms": 600_000}
"""For transactions that no broker ends while a test waits."""


def left_open(settings: Settings, instance: str, producer: str) -> Producer:
    """Begin a transaction of a producer of an instance's card agent: a record, and an offset of its group."""
    name = f"{settings.topic(producer)}-{instance}"
    left = Producer(producer_config(servers(settings), transactional_id=name, overrides=LONG_OPEN))
    left.init_transactions(TIMEOUT_S)
    left.begin_transaction()
    left.produce(settings.topic(PROFILED.name), b"unfinished", partition=0)
    member = Consumer(consumer_config(servers(settings), settings.topic("card"), settings=settings))
    at = TopicPartition(settings.topic(TRANSACTIONS.name), 0, 1)
    left.send_offsets_to_transaction([at], member.consumer_group_metadata(), TIMEOUT_S)
    left.flush(TIMEOUT_S)
    member.close()
    return left


@pytest.mark.parametrize("client", ["batched", "librdkafka"])
def test_whoever_takes_over_ends_what_the_last_holder_left_open(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    write(settings, [str(number) for number in range(20)])
    handler = Numbers()
    dead = settings.model_copy(update={"instance": "dead"})
    with ExitStack() as stack:
        item = Session(servers(settings), dead, "card", READS, handler)
        stack.callback(partial(item.close, release=False))
        item.start()
        work(item, handler, lambda: len(held(handler)) == 20)
    # An agent's producers take turns, and the brokers do not tell before the last of their transactions has ended.
    left = [left_open(settings, "dead", producer) for producer in ("card", "card.2")]
    deadline_s = time.monotonic() + TIMEOUT_S

    def waiting() -> None:
        # Without the end of the transactions the brokers do not tell where the group stands.
        assert time.monotonic() < deadline_s

    with session(settings, Numbers(), producers=len(left), waiting=waiting) as two:
        while len(two.assigned) < 4:
            waiting()
            two.poll(0.1)
        for producer in left:
            with pytest.raises(KafkaException) as fenced:
                producer.commit_transaction(TIMEOUT_S)
            assert fenced.value.args[0].code() in FENCED
    assert "instance dead died with partitions" in caplog.text


def test_nobody_ends_transactions_of_an_instance_that_released_its_partitions(settings: Settings) -> None:
    write(settings, [str(number) for number in range(20)])
    handler = Numbers()
    with session(settings.model_copy(update={"instance": "stopped"}), handler) as opened:
        work(opened, handler, lambda: len(held(handler)) == 20)
    member = Member(servers(settings), settings, "card", READS)
    offsets = CommittedOffsets(member, Retries("card", lambda: None))
    assert offsets.dead_holders([(settings.topic(TRANSACTIONS.name), number) for number in range(2)]) == set()


@pytest.mark.parametrize("client", ["batched", "librdkafka"])
def test_what_an_earlier_process_left_open_is_ended_before_anything_is_read(settings: Settings) -> None:
    """Checks at a start, restores and readers of results waited for it until the brokers' time limit."""
    name, client = settings.topic(PROFILED.name), admin_client(servers(settings))
    of_card = f"{settings.topic('card')}.2-{settings.instance}"
    left = Producer(producer_config(servers(settings), transactional_id=of_card, overrides=LONG_OPEN))
    left.init_transactions(TIMEOUT_S)
    left.begin_transaction()
    left.produce(name, b"unfinished", partition=0)
    left.flush(TIMEOUT_S)

    def end(isolation: IsolationLevel) -> int:
        return last_offsets(client, [(name, 0)], isolation)[name, 0]

    assert (end(IsolationLevel.READ_UNCOMMITTED), end(IsolationLevel.READ_COMMITTED)) == (1, 0)
    end_unfinished(servers(settings), settings, {"label": 1, "card": 2})
    # The record, and the marker of its end.
    assert (end(IsolationLevel.READ_UNCOMMITTED), end(IsolationLevel.READ_COMMITTED)) == (2, 2)
    with pytest.raises(KafkaException) as fenced:
        left.commit_transaction(TIMEOUT_S)
    assert fenced.value.args[0].code() in FENCED
