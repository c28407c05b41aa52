"""Which unreadable batches a reader without a group skips, and what it refuses."""

from datetime import UTC, datetime

import pytest
from confluent_kafka import KafkaError

from pipeline.kafka.cluster.errors import TopicError
from pipeline.kafka.readers import log_consumer
from pipeline.kafka.readers.log_consumer import LogConsumer
from pipeline.kafka.records.batch import Item, Partition, ReadError, UnreadableRange
from pipeline.kafka.records.batch_records import ODD_OFFSET
from pipeline.kafka.records.damaged_batch import DAMAGED as DISK
from pipeline.kafka.session.quarantine import control_record
from pipeline.settings import Settings
from schemas.messages import Quarantine, RecordPosition
from schemas.records import Output, Record
from schemas.topics import CONTROL, DECISIONS, MODELS, PROFILED, PROGRESS, TRANSACTIONS, Topic

LOG_END = 8
NETWORK = "Network"
DAMAGED = range(3, 6)
"""Offsets of the one batch that fails."""
Range = tuple[int, int]


class Log:
    """One partition with an unreadable batch, and ``control``."""

    def __init__(self) -> None:
        self.name = PROFILED.name
        self.control: list[bytes] = []
        self.is_readable = False
        self.error = "BadCompression"
        self.others: tuple[int, ...] = ()
        self.found: list[int] = []
        """Offsets at which the batch was met."""
        self.asked = 0
        """How often ``control`` was read."""

    def quarantine(self, *ranges: Range) -> None:
        for first, end in ranges:
            position = RecordPosition(topic=self.name, partition=0, offset=first, end=end)
            item = Quarantine(
                agent="score", position=position, error_type="Damaged", message="", quarantined_at=datetime.now(UTC)
            )
            output: Output = control_record(item)
            self.control.append(output.value or b"")

    def at(self, partition: Partition, offset: int) -> Item:
        if partition[0] != self.name:
            if offset < len(self.control):
                return Record(*partition, offset, 0, None, self.control[offset])
        elif offset in DAMAGED and not self.is_readable:
            self.found.append(offset)
            if self.error == NETWORK:
                return ReadError(partition, offset, KafkaError(KafkaError._BAD_MSG, "check the network"))
            return UnreadableRange(partition, offset, DAMAGED.stop, self.error, "it cannot be read", self.others)
        elif offset < LOG_END:
            return Record(*partition, offset, 0, None, b"")
        return ReadError(partition, offset, KafkaError(KafkaError._PARTITION_EOF))


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    made = Log()

    class Consumer:
        """In place of the reader of record batches: hands over one item at a time."""

        def __init__(self, config: object, inputs: object) -> None:
            del config, inputs

        def seek(self, partition: Partition, offset: int) -> None:
            self._partition, self._at = partition, offset
            made.asked += partition[0] == CONTROL.name != made.name

        def take(self, most: int) -> list[Item]:
            del most
            item = made.at(self._partition, self._at)
            self._at += isinstance(item, Record)
            return [item]

        def prefetch(self) -> None:
            """All is there."""

        def close(self) -> None:
            """Nothing is open."""

    monkeypatch.setattr(log_consumer, "BoundedConsumer", Consumer)
    return made


def read(log: Log, *, accept_damaged_control: bool = False, **options: bool) -> list[int]:
    """The offsets of all records that a reader gets."""
    reader = LogConsumer("nobody:1", Settings(accept_damaged_control=accept_damaged_control), **options)
    reader.assign({(log.name, 0): 0})
    offsets: list[int] = []
    for _ in range(1_000):
        for item in reader.take(0.0, 10):
            if isinstance(item, ReadError):
                return offsets
            offsets.append(item.offset)
    raise AssertionError("the reader does not come to an end")


def test_a_quarantined_batch_is_skipped(log: Log) -> None:
    log.quarantine((DAMAGED.start, DAMAGED.stop))
    assert read(log) == [0, 1, 2, 6, 7]
    assert (log.found, log.asked) == ([DAMAGED.start], 1)


@pytest.mark.parametrize("forged", [(0, 2**63 - 1), (3, 7), (0, 3), (4, 6), (6, 8)])
def test_a_forged_range_removes_no_record_that_can_be_read(log: Log, forged: Range) -> None:
    log.quarantine(forged)
    with pytest.raises(TopicError, match="no agent has quarantined that"):
        read(log)
    log.quarantine((DAMAGED.start, DAMAGED.stop))
    assert read(log) == [0, 1, 2, 6, 7]
    log.is_readable = True
    assert read(log) == [*range(LOG_END)]


def test_an_end_that_is_no_offset_is_no_control_record(log: Log) -> None:
    log.quarantine((DAMAGED.start, DAMAGED.stop))
    log.control.insert(0, log.control[0].replace(b'"end":6', b'"end":1' + b"0" * 30))
    assert read(log) == [0, 1, 2, 6, 7]


def test_a_batch_in_two_ranges_is_skipped_range_by_range(log: Log) -> None:
    """As of a batch whose end was searched in parts, or before a mark of a transaction stood behind it."""
    log.quarantine((3, 4), (4, 6))
    assert read(log) == [0, 1, 2, 6, 7]
    assert log.found == [3, 4]


def test_nobody_has_quarantined_a_batch(log: Log) -> None:
    with pytest.raises(TopicError, match=r"from offset 3 on \(it cannot be read\) and no agent has quarantined that"):
        read(log)
    log.error, log.others = DISK, (2,)
    with pytest.raises(TopicError, match="run until it has; or let broker 2 lead the partition"):
        read(log)


@pytest.mark.parametrize("topic", [CONTROL, MODELS, PROGRESS], ids=lambda topic: topic.name)
def test_of_topics_that_nobody_quarantines_a_batch_is_skipped(log: Log, topic: Topic) -> None:
    log.name = topic.name
    assert read(log) == [0, 1, 2, 6, 7]
    assert log.asked == 0


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
    assert log.asked == 0


def test_a_batch_with_another_offset_is_skipped_or_refused(log: Log) -> None:
    log.name, log.error = TRANSACTIONS.name, ODD_OFFSET
    assert read(log) == [0, 1, 2, 6, 7]
    with pytest.raises(TopicError, match=r"from offset 3 on \(it cannot be read\)"):
        read(log, skip_refused=False)
    # What may be read one day, under another bound, is skipped where an agent has.
    log.error = "BatchTooLarge"
    with pytest.raises(TopicError, match="no agent has quarantined that"):
        read(log)


@pytest.mark.parametrize("options", [{}, {"skip_unreadable": True}, {"skip_refused": False}])
def test_a_batch_that_comes_damaged_again_and_again_ends_the_reader(log: Log, options: dict[str, bool]) -> None:
    log.error = NETWORK
    with pytest.raises(TopicError, match="check the network"):
        read(log, **options)
    # Not behind what is wanted.
    reader = LogConsumer("nobody:1", Settings(), **options)
    reader.assign({(log.name, 0): DAMAGED.start})
    assert reader.take(0.0, 10, DAMAGED.start) == []
