"""What a session promises of outputs, offsets and state, against a real broker."""

import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import pytest

from pipeline.kafka.admin import committed_offsets, ensure_topics
from pipeline.kafka.batch import Batch
from pipeline.kafka.caller import Hung
from pipeline.kafka.clients import read_topic
from pipeline.kafka.handler import Restored
from pipeline.kafka.producer import RecordProducer
from pipeline.kafka.session import Session
from pipeline.kafka.transactions import Aborted, SessionError, Transactions
from pipeline.settings import Settings
from schemas.messages import FeedbackRules, Rules
from schemas.records import Output, Record
from schemas.topics import DECISIONS, LABELS, PROFILED, TOPICS, TRANSACTIONS

pytestmark = pytest.mark.broker
PATIENCE_S = 30.0
READS = (TRANSACTIONS, LABELS)


class Numbers:
    """State that is a list of the record values of each partition; a batch is pending until it is settled."""

    def __init__(self, rules: Rules | None = None) -> None:
        self.rules = rules
        self.judged: list[Rules | None] = []
        self.settled: dict[int, list[bytes]] = {}
        self.pending: dict[int, list[bytes]] = {}
        self.folded: list[list[bytes]] = []

    def assigning(self, waiting: Callable[[], None]) -> None:
        """Nothing to prepare."""

    def restore(
        self, partition: int, committed: Mapping[str, int], logs: Mapping[str, range], waiting: Callable[[], None]
    ) -> Restored | None:
        self.settled[partition] = []
        return None

    def fold(self, partition: int, records: Sequence[Record], rules: Rules | None) -> None:
        values = [record.value or b"" for record in records]
        self.judged.append(rules)
        self.settled[partition] += values
        self.folded.append(values)

    def restored(self, partition: int, records: int) -> None:
        assert len(self.settled[partition]) == records

    def forget(self, partition: int) -> None:
        self.settled.pop(partition, None)

    def settle(self, partitions: Collection[int]) -> None:
        for partition in partitions:
            self.settled[partition] += self.pending.pop(partition)

    def undo(self, partitions: Collection[int]) -> None:
        for partition in partitions:
            self.pending.pop(partition, None)

    def process(self, batch: Batch) -> list[Output]:
        outputs = []
        for record in batch.records:
            self.pending.setdefault(record.partition, []).append(record.value or b"")
            outputs.append(Output(DECISIONS, record.key, record.value))
        return outputs


@pytest.fixture
def settings(kafka_settings: Settings) -> Settings:
    settings = kafka_settings.model_copy(update={"card_partitions": 2, "merchant_partitions": 2})
    ensure_topics(servers(settings), settings, TOPICS)
    return settings


def servers(settings: Settings) -> str:
    assert settings.kafka_bootstrap_servers is not None
    return settings.kafka_bootstrap_servers


@contextmanager
def session(settings: Settings, handler: Numbers) -> Iterator[Session]:
    with ExitStack() as stack:
        made = Session(servers(settings), settings, "card", READS, handler)
        stack.callback(made.close)
        made.start()
        yield made


def write(settings: Settings, values: Sequence[str], topic: str = TRANSACTIONS.name) -> None:
    with RecordProducer(servers(settings), settings) as producer:
        for value in values:
            producer.produce(settings.topic(topic), f"k{value}".encode(), value.encode(), 1_700_000_000_000)


def work(one: Session, handler: Numbers, done: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < deadline_s, "the records did not come"
        batch = one.poll(0.1)
        if batch is not None:
            one.commit(batch, handler.process(batch))


def polled(one: Session) -> Batch:
    deadline_s = time.monotonic() + PATIENCE_S
    while (batch := one.poll(0.1)) is None:
        assert time.monotonic() < deadline_s, "no batch came"
    return batch


def decided(settings: Settings) -> list[bytes]:
    return sorted(record.value or b"" for record in read_topic(servers(settings), settings.topic(DECISIONS.name)))


def held(handler: Numbers) -> list[bytes]:
    return sorted(value for values in handler.settled.values() for value in values)


def test_an_aborted_batch_is_taken_back_and_read_again(settings: Settings) -> None:
    handler = Numbers()
    write(settings, ["1", "2", "3"])
    with session(settings, handler) as one:
        batch = polled(one)
        too_large = Output(PROFILED, b"k", random.Random(0).randbytes(PROFILED.max_message_bytes + 1_000_000))
        with pytest.raises(Aborted):
            one.commit(batch, [*handler.process(batch), too_large])
        assert held(handler) == []
        assert not handler.pending
        work(one, handler, lambda: len(held(handler)) == 3)
        assert held(handler) == decided(settings) == [b"1", b"2", b"3"]


@pytest.mark.parametrize("committed", [True, False])
def test_where_nobody_says_how_a_transaction_ended_the_offsets_do(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    handler, hung = Numbers(), []
    original = Transactions._transactional

    def once(self: Transactions, what: str, call: Callable[[], object]) -> None:
        if what == "commit_transaction" and not hung:
            hung.append(what)
            if committed:
                original(self, what, call)
            raise Hung("the broker died")
        original(self, what, call)

    monkeypatch.setattr(Transactions, "_transactional", once)
    write(settings, ["1", "2", "3"])
    with session(settings, handler) as one:
        batch = polled(one)
        outputs = handler.process(batch)
        if committed:
            one.commit(batch, outputs)
        else:
            with pytest.raises(Aborted):
                one.commit(batch, outputs)
        work(one, handler, lambda: len(held(handler)) == 3)
        assert hung
        assert held(handler) == decided(settings) == [b"1", b"2", b"3"]


def test_a_rival_of_the_same_name_ends_the_worker_that_is_fenced_again(settings: Settings) -> None:
    first, second = Numbers(), Numbers()
    with session(settings, first) as one, session(settings, second) as two:
        write(settings, [str(number) for number in range(20)])

        def both() -> None:
            deadline_s = time.monotonic() + PATIENCE_S
            number = 100
            while time.monotonic() < deadline_s:
                number += 1
                write(settings, [str(number), str(number + 1_000)])
                for member, handler in ((one, first), (two, second)):
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


def test_a_fold_repeats_the_batches_as_they_were_read(settings: Settings) -> None:
    rules = FeedbackRules(
        future_tolerance_us=1, label_horizon_us=2 << 40, maturity_us=3 << 40, negative_sample_rate=0.1
    )
    live, batches = Numbers(rules), []
    with session(settings, live) as one:
        for topic, values in ((LABELS, ["l1", "l2"]), (TRANSACTIONS, ["t1", "t2"]), (LABELS, ["l3"])):
            write(settings, values, topic.name)
            before = len(held(live))

            def come(count: int = before + len(values)) -> bool:
                return len(held(live)) == count

            deadline_s = time.monotonic() + PATIENCE_S
            while not come():
                assert time.monotonic() < deadline_s
                if (batch := one.poll(0.1)) is not None:
                    for number in sorted(batch.partitions):
                        batches.append([r.value for r in batch.records if r.partition == number])
                    one.commit(batch, live.process(batch))
    again = Numbers()
    with session(settings, again) as other:
        deadline_s = time.monotonic() + PATIENCE_S
        while len(other.assigned) < 4:
            assert time.monotonic() < deadline_s
            other.poll(0.1)
        assert sorted(again.folded) == sorted(batches)
        assert set(again.judged) == {rules}


def test_partitions_move_whole_between_workers(settings: Settings) -> None:
    first, second = Numbers(), Numbers()
    other = settings.model_copy(update={"instance": "other"})
    with session(settings, first) as one:
        work(one, first, lambda: len(one.assigned) == 4)
        write(settings, [str(number) for number in range(10)])
        work(one, first, lambda: len(held(first)) == 10)
        with session(other, second) as two:
            deadline_s = time.monotonic() + PATIENCE_S
            while not (len(one.assigned) == len(two.assigned) == 2):
                assert time.monotonic() < deadline_s
                assert one.poll(0.05) is None
                assert two.poll(0.05) is None
            numbers = [{number for _, number in member.assigned} for member in (one, two)]
            assert numbers[0] | numbers[1] == {0, 1}
            assert not numbers[0] & numbers[1]
            assert sorted([*held(first), *held(second)]) == sorted(str(number).encode() for number in range(10))


def test_offsets_are_committed_with_the_outputs_and_not_otherwise(settings: Settings) -> None:
    handler = Numbers()
    write(settings, ["1", "2", "3"])
    topics = [settings.topic(topic.name) for topic in READS]
    with session(settings, handler) as one:
        batch = polled(one)
        handler.process(batch)
        assert committed_offsets(servers(settings), settings.topic("card"), topics) == {}
        one.rewind(batch)
        work(one, handler, lambda: len(held(handler)) == 3)
    assert sum(committed_offsets(servers(settings), settings.topic("card"), topics).values()) == 3
