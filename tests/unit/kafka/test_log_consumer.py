"""Which unreadable batches a reader without a group skips, how often it reads one first, and what it refuses."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from confluent_kafka import OFFSET_BEGINNING, KafkaError, KafkaException, TopicPartition

from pipeline.kafka.cluster.errors import TopicError
from pipeline.kafka.damage.batch_records import ODD_OFFSET
from pipeline.kafka.damage.unreadable import DAMAGED as DISK
from pipeline.kafka.damage.unreadable import FETCHES, Fault
from pipeline.kafka.readers import log_consumer
from pipeline.kafka.readers.log_consumer import LogConsumer
from pipeline.kafka.records.batch import Partition, UnreadableRange
from pipeline.kafka.records.message_records import Item, ReadError
from pipeline.kafka.records.raw_fetch import FetchUnanswered
from pipeline.kafka.session.quarantine import control_record
from schemas.messages import Quarantine, RecordPosition
from schemas.records import Output, Record
from schemas.topics import CONTROL, DECISIONS, MODELS, PROFILED, PROGRESS, TRANSACTIONS, Topic
from tests.helpers.client_messages import ClientMessage, message_of

LOG_END = 8
DAMAGED = range(3, 6)
"""Offsets of the one batch that fails."""
Range = tuple[int, int]


class Log:
    """One partition with a damaged batch, and ``control``; counts fetches of the batch and probes for its end."""

    def __init__(self) -> None:
        self.name = PROFILED.name
        self.control: list[bytes] = []
        self.failures = 0
        self.heals_after = 10**9
        """Failed fetches after which the batch can be read."""
        self.ends: list[int | Exception] = [DAMAGED.stop]
        """What examinations find, one after the other; the last one again and again."""
        self.error = "_BAD_COMPRESSION"
        self.others: tuple[int, ...] = ()
        self.searched: list[int] = []
        self.asked = 0
        """How often ``control`` was read."""
        self.described: list[str] = []
        """Topics of which the leaders were asked for."""

    def quarantine(self, *ranges: Range) -> None:
        for first, end in ranges:
            position = RecordPosition(topic=self.name, partition=0, offset=first, end=end)
            item = Quarantine(
                agent="score", position=position, error_type="_BAD_MSG", message="", quarantined_at=datetime.now(UTC)
            )
            output: Output = control_record(item)
            self.control.append(output.value or b"")

    def at(self, topic: str, offset: int) -> ClientMessage:
        if topic != self.name:
            if offset < len(self.control):
                return message_of(Record(topic, 0, offset, 0, None, self.control[offset]))
            return ClientMessage((topic, 0), offset, code=KafkaError._PARTITION_EOF)
        if offset in DAMAGED and self.failures < self.heals_after:
            self.failures += 1
            return ClientMessage((topic, 0), DAMAGED.start, code=KafkaError._BAD_MSG)
        if offset < LOG_END:
            return message_of(Record(topic, 0, offset, 0, None, b""))
        return ClientMessage((topic, 0), offset, code=KafkaError._PARTITION_EOF)

    def find_fault(
        self, _config: object, _partition: object, start: int, _waiting: Callable[[], None], *, is_silent: bool = False
    ) -> Fault | None:
        assert not is_silent
        self.searched.append(start)
        end = self.ends.pop(0) if len(self.ends) > 1 else self.ends[0]
        if isinstance(end, Exception):
            raise end
        return Fault(start, end, self.error, "it cannot be read", self.others) if end > start else None


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    made = Log()

    class Consumer:
        """In place of librdkafka's: hands over one message at a time."""

        def __init__(self, config: object) -> None:
            del config
            self._at = TopicPartition("")

        def list_topics(self, topic: str, timeout: float) -> None:
            made.described.append(topic)

        def assign(self, partitions: list[TopicPartition]) -> None:
            self._at = partitions[-1]
            self._at.offset = max(self._at.offset, 0)
            made.asked += self._at.topic == CONTROL.name != made.name

        incremental_assign = assign

        def incremental_unassign(self, partitions: object) -> None:
            del partitions

        def assignment(self) -> list[TopicPartition]:
            return [self._at]

        def poll(self, timeout_s: float) -> ClientMessage:
            del timeout_s
            message = made.at(self._at.topic, self._at.offset)
            if message.error() is None:
                self._at.offset += 1
            return message

        def consume(self, most: int, timeout_s: float) -> list[Any]:
            del most, timeout_s
            return []

        def close(self) -> None:
            pass

    monkeypatch.setattr(log_consumer, "Consumer", Consumer)
    monkeypatch.setattr(log_consumer, "find_fault", made.find_fault)
    return made


def read(log: Log, **options: bool) -> list[int]:
    """The offsets of all records that a reader gets."""
    reader = LogConsumer({}, "", {}, **options)
    reader.assign([TopicPartition(log.name, 0, 0)])
    offsets: list[int] = []
    for _ in range(1_000):
        for item in reader.take(0.0, 10):
            if isinstance(item, ReadError):
                return offsets
            offsets.append(item.offset)
    raise AssertionError("the reader does not come to an end")


def test_a_quarantined_batch_is_examined_and_skipped(log: Log) -> None:
    log.quarantine((DAMAGED.start, DAMAGED.stop))
    assert read(log) == [0, 1, 2, 6, 7]
    assert (log.failures, log.searched) == (1, [DAMAGED.start])


def test_a_batch_that_was_damaged_on_the_way_is_read_again(log: Log) -> None:
    log.quarantine((DAMAGED.start, DAMAGED.stop))
    log.heals_after, log.ends = FETCHES - 1, [DAMAGED.start]
    assert read(log) == [*range(LOG_END)]
    assert (log.asked, log.searched) == (0, [DAMAGED.start] * (FETCHES - 1))


@pytest.mark.parametrize("forged", [(0, 2**63 - 1), (3, 7), (0, 3), (4, 6), (6, 8)])
def test_a_forged_range_removes_no_record_that_can_be_read(log: Log, forged: Range) -> None:
    log.quarantine(forged)
    with pytest.raises(TopicError, match="no agent has quarantined that"):
        read(log)
    log.quarantine((DAMAGED.start, DAMAGED.stop))
    assert read(log) == [0, 1, 2, 6, 7]
    log.failures, log.heals_after = 0, 0
    assert read(log) == [*range(LOG_END)]


def test_an_end_that_is_no_offset_is_no_control_record(log: Log) -> None:
    log.quarantine((DAMAGED.start, DAMAGED.stop))
    log.control.insert(0, log.control[0].replace(b'"end":6', b'"end":1' + b"0" * 30))
    assert read(log) == [0, 1, 2, 6, 7]


def test_a_batch_in_two_ranges_is_skipped_range_by_range(log: Log) -> None:
    """As of a batch whose end was searched in parts, or before a mark of a transaction stood behind it."""
    log.quarantine((3, 4), (4, 6))
    assert read(log) == [0, 1, 2, 6, 7]
    assert log.searched == [3, 4]


def test_nobody_has_quarantined_a_batch(log: Log) -> None:
    with pytest.raises(TopicError, match=r"from offset 3 on \(it cannot be read\) and no agent has quarantined that"):
        read(log)
    assert log.failures == 1
    log.error, log.others = DISK, (2,)
    with pytest.raises(TopicError, match="run until it has; or let broker 2 lead the partition"):
        read(log)


@pytest.mark.parametrize("error", [FetchUnanswered("no broker"), KafkaException(KafkaError(KafkaError._TRANSPORT))])
def test_a_broker_that_is_away_while_the_end_is_searched_is_waited_for(log: Log, error: Exception) -> None:
    log.quarantine((DAMAGED.start, DAMAGED.stop))
    log.ends = [*[error] * 9, DAMAGED.stop]
    assert read(log) == [0, 1, 2, 6, 7]
    assert log.searched == [DAMAGED.start] * 10


def test_a_client_that_fails_at_a_whole_batch_is_not_believed_for_ever(
    log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    log.ends = [DAMAGED.start]
    with pytest.raises(TopicError, match="or only sometimes: check the network"):
        read(log)
    assert log.failures == FETCHES
    assert "skipped" not in caplog.text


@pytest.mark.parametrize("topic", [CONTROL, MODELS, PROGRESS], ids=lambda topic: topic.name)
def test_of_topics_that_nobody_quarantines_a_batch_is_skipped(log: Log, topic: Topic) -> None:
    log.name = topic.name
    assert read(log) == [0, 1, 2, 6, 7]
    assert (log.failures, log.asked) == (1, 0)


@pytest.mark.parametrize("topic", [CONTROL, MODELS, PROGRESS], ids=lambda topic: topic.name)
@pytest.mark.parametrize("options", [{}, {"skip_unreadable": True}], ids=["reader", "check"])
def test_what_a_disk_has_damaged_of_control_is_not_passed_over_without_a_word(
    log: Log, topic: Topic, options: dict[str, bool]
) -> None:
    log.name, log.error = topic.name, DISK
    if topic is not CONTROL:
        assert read(log, **options) == [0, 1, 2, 6, 7]
        return
    with pytest.raises(TopicError, match=r"offsets 3 to 5, .*: restore the disk .*ACCEPT_DAMAGED_CONTROL=true"):
        read(log, **options)
    log.others = (2, 3)
    with pytest.raises(TopicError, match="let broker 2 or 3 lead the partition, which may hold them whole"):
        read(log, **options)
    assert read(log, accept_damaged_control=True, **options) == [0, 1, 2, 6, 7]


@pytest.mark.parametrize("topic", [PROFILED, DECISIONS], ids=lambda topic: topic.name)
def test_a_reader_that_only_looks_skips_what_nobody_has_quarantined(log: Log, topic: Topic) -> None:
    log.name = topic.name
    assert read(log, skip_unreadable=True) == [0, 1, 2, 6, 7]
    assert (log.failures, log.asked) == (1, 0)


@pytest.mark.parametrize(
    ("offsets", "asks"), [([5], False), ([OFFSET_BEGINNING], True), ([5, 5], True)], ids=["offset", "beginning", "two"]
)
def test_leaders_are_asked_for_where_the_client_would_learn_of_them_late(
    log: Log, offsets: list[int], asks: bool
) -> None:
    reader = LogConsumer({}, "", {})
    reader.assign([TopicPartition(log.name, number, offset) for number, offset in enumerate(offsets)])
    assert log.described == [log.name] * asks
    reader.close()


class Bounded:
    """In place of the reader of what producers write: a record, a batch that is refused, and what follows it."""

    error = ""

    def __init__(self, config: object) -> None:
        self._at = 0

    def seek(self, partition: Partition, offset: int) -> None:
        self._partition, self._at = partition, offset

    def take(self, most: int) -> list[Item]:
        if self._at == DAMAGED.start:
            return [UnreadableRange(self._partition, DAMAGED.start, DAMAGED.stop, self.error, "as it is")]
        if self._at == LOG_END:
            return [ReadError(self._partition, LOG_END, KafkaError(KafkaError._PARTITION_EOF))]
        self._at += 1
        return [Record(*self._partition, self._at - 1, 0, None, b"")]

    def prefetch(self) -> None:
        """Nothing comes meanwhile."""

    def wait(self, timeout_s: float) -> None:
        """All is there."""

    def close(self) -> None:
        """Nothing is open."""


def test_what_producers_write_is_skipped_as_a_whole_batch_or_refused(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_consumer, "BoundedConsumer", Bounded)
    log.name = TRANSACTIONS.name
    kept = [*range(DAMAGED.start), *range(DAMAGED.stop, LOG_END)]
    monkeypatch.setattr(Bounded, "error", ODD_OFFSET)
    assert read(log) == kept
    with pytest.raises(TopicError, match=r"from offset 3 on \(as it is\)"):
        read(log, skip_refused=False)
    # What may be read one day, under another bound, is skipped where an agent has.
    monkeypatch.setattr(Bounded, "error", "BatchTooLarge")
    with pytest.raises(TopicError, match="no agent has quarantined that"):
        read(log)
    log.quarantine((DAMAGED.start, DAMAGED.stop))
    assert read(log) == kept
    assert log.searched == []
    monkeypatch.setattr(Bounded, "error", DISK)
    assert read(log) == kept
    assert log.searched == [DAMAGED.start]
