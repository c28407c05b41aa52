"""How a restore goes on from a snapshot and a log that may have lost its beginning, against a real broker."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import pytest
from confluent_kafka import TopicPartition

from pipeline.engine.partition_state.state import StateDump
from pipeline.kafka.cluster.admin import ensure_topics
from pipeline.kafka.cluster.clients import admin_client
from pipeline.kafka.session.restore import restore_partition
from pipeline.kafka.session.state_handler import Restored
from pipeline.kafka.writers.producer import RecordProducer
from pipeline.settings import Settings
from pipeline.state.manifest import SnapshotKey
from pipeline.state.snapshots import Refused, SnapshotRepository, UnusableReason
from schemas.messages import ProcessingConfig
from schemas.records import Record
from schemas.topics import PROFILED

pytestmark = pytest.mark.broker
TIMEOUT_S = 30.0
KEY = SnapshotKey("score", 0, "cluster", {"profiled": "topic"}, 1, "kernel")


class Kept:
    """State that is the offsets of the records that entered it; kept in snapshots."""

    def __init__(self, settings: Settings, scratch: Path) -> None:
        self.refused: list[Refused] = []
        self.offsets: list[int] = []
        self._prefix, self._scratch = settings.topic_prefix, scratch
        self.repository = SnapshotRepository(str(settings.snapshot_address), on_refused=self.refused.append)

    def assigning(self, waiting: Callable[[], None]) -> None:
        """Nothing to prepare."""

    def restore(
        self, partition: int, committed: Mapping[str, int], logs: Mapping[str, range], waiting: Callable[[], None]
    ) -> Restored | None:
        by_name = {topic.removeprefix(self._prefix): offset for topic, offset in committed.items()}
        ranges = {topic.removeprefix(self._prefix): offsets for topic, offsets in logs.items()}
        found = self.repository.newest(KEY, by_name, self._scratch, ranges, waiting)
        if found is None:
            return None
        return Restored({self._prefix + topic: offset for topic, offset in found.positions.items()}, found.progress)

    def replay(self, partition: int, records: Sequence[Record], config: ProcessingConfig | None) -> None:
        self.offsets += [record.offset for record in records]

    def restored(self, partition: int, records: int) -> None: ...

    def forget(self, partition: int) -> None: ...

    def commit(self, partitions: Collection[int]) -> None: ...

    def rollback(self, partitions: Collection[int]) -> None: ...


@pytest.mark.parametrize(
    ("position", "folds_from", "reasons"), [(5, 20, [UnusableReason.BEHIND]), (20, 20, []), (30, 30, [])]
)
def test_a_snapshot_older_than_the_log_is_passed_over(
    kafka_settings: Settings, tmp_path: Path, position: int, folds_from: int, reasons: list[UnusableReason]
) -> None:
    settings = kafka_settings.model_copy(update={"merchant_partitions": 1})
    bootstrap = settings.kafka_bootstrap_servers
    assert bootstrap is not None
    ensure_topics(bootstrap, settings)
    topic = settings.topic(PROFILED.name)
    with RecordProducer(bootstrap, settings) as producer:
        for _ in range(60):
            producer.produce(topic, b"k", b"v", 1_700_000_000_000)
    at = TopicPartition(topic, 0, 20)
    client = admin_client(bootstrap)
    client.delete_records([at])[at].result(TIMEOUT_S)
    handler = Kept(settings, tmp_path / "scratch")
    handler.repository.writer(KEY, None).write({"profiled": position}, 0, StateDump(b"", {}))
    done = restore_partition(bootstrap, settings, "score", 0, {(topic, 0): 50}, handler, lambda: None)
    assert handler.offsets == list(range(folds_from, 50))
    assert done.records == len(handler.offsets)
    assert [item.reason for item in handler.refused] == reasons
