"""What drift detection counts: decisions, alerts and reports, from a cluster's topics or from exported files."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.engine.blocks import BlockError
from pipeline.engine.feature_blocks import EVENT_US, SCORE, read_features
from pipeline.exports.contents import check_whole
from pipeline.exports.errors import ExportError
from pipeline.features.catalogue import DEFAULT_FEATURES, FEATURES, KERNEL_VERSION
from pipeline.kafka.clients import (
    QUEUE_OF_BLOCKS,
    admin_client,
    offsets_at,
    partition_numbers,
    patiently,
    read_batches,
)
from pipeline.kafka.internal import not_counted, readable, refuse
from pipeline.learning.labels import FRAUD
from pipeline.monitoring.daily import DailyCounts
from pipeline.scoring.distributions import FeatureDistribution, distributions_of
from pipeline.scoring.lightgbm_model import LightGBMModel
from pipeline.settings import Settings
from schemas.records import Record
from schemas.topics import ALERTS, DECISION_FEATURES, EXAMPLES, Topic

MONITORED: Final = (DECISION_FEATURES, ALERTS, EXAMPLES)
_EDGES_FROM: Final = 50_000
"""First rows whose tenths become bins where the LightGBM version has no distributions."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_CHUNK_ROWS: Final = 65_536


class _Event(msgspec.Struct):
    """What is read of an alert or an example."""

    event_time: datetime
    label: str | None = None
    known_at: datetime | None = None


_decode_event: Final = msgspec.json.Decoder(_Event).decode


class Monitored:
    """Daily counts of all that was read so far, in the bins of a LightGBM version.

    Only features that the trees ask for are counted. Without a version the default features are, in tenths of the
    first rows.
    """

    def __init__(self, model: LightGBMModel | None) -> None:
        self._counts: DailyCounts | None = None
        self._first: list[tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]] = []
        self._others: list[tuple[NDArray[np.int64], NDArray[np.int64] | None]] = []
        self.importance: dict[str, float] = dict.fromkeys(DEFAULT_FEATURES, 1 / len(DEFAULT_FEATURES))
        """Gain share by feature."""
        if model is not None:
            self.importance = model.gain_shares
        distributions = [] if model is None else [one for one in model.distributions if one.name in self.importance]
        if distributions:
            self._begin(distributions)

    def add_decisions(
        self, event_time_us: NDArray[np.int64], features: NDArray[np.float64], score: NDArray[np.float64]
    ) -> None:
        """Count decisions, as `DailyCounts.add_decisions`."""
        if self._counts is not None:
            self._counts.add_decisions(event_time_us, features, score)
            return
        self._first.append((event_time_us, features, score))
        if sum(len(rows) for rows, _, _ in self._first) >= _EDGES_FROM:
            self._find_bins()

    def add_alerts(self, event_time_us: NDArray[np.int64]) -> None:
        """Count alerts, as `DailyCounts.add_alerts`."""
        self._others.append((event_time_us, None))

    def add_reports(self, event_time_us: NDArray[np.int64], known_at_us: NDArray[np.int64]) -> None:
        """Count reported frauds, as `DailyCounts.add_reports`."""
        self._others.append((event_time_us, known_at_us))

    @property
    def counts(self) -> DailyCounts:
        """All counts."""
        if self._counts is None:
            self._find_bins()
        counts = self._counts or DailyCounts([])
        for event_time_us, known_at_us in self._others:
            if known_at_us is None:
                counts.add_alerts(event_time_us)
            else:
                counts.add_reports(event_time_us, known_at_us)
        self._others = []
        return counts

    def _find_bins(self) -> None:
        features = np.concatenate([np.empty((0, len(FEATURES))), *(rows for _, rows, _ in self._first)])
        self._begin(distributions_of(features, np.ones(len(features)), list(self.importance)))

    def _begin(self, distributions: Iterable[FeatureDistribution]) -> None:
        self._counts = DailyCounts(list(distributions))
        for rows in self._first:
            self._counts.add_decisions(*rows)
        self._first = []


class MonitoredTopics:
    """The topics `MONITORED` of a cluster, read without a group.

    Args:
        bootstrap: Addresses of brokers.
        settings: Give the topics' full names and the client's configuration.
        into: What counts.
        from_ms: Start with the first record of this time, in milliseconds since 1970; by default with the oldest.
    """

    def __init__(self, bootstrap: str, settings: Settings, into: Monitored, from_ms: int | None = None) -> None:
        self._bootstrap, self._settings, self._into = bootstrap, settings, into
        self._from_ms = from_ms
        self._next: dict[str, dict[int, int]] = {}

    def refresh(self) -> None:
        """Count what was committed since the last call.

        Raises:
            TopicError: A topic is missing, or a part of it cannot be read.
            KafkaException: The brokers report an error that does not pass.
        """
        for topic in MONITORED:
            name = self._settings.topic(topic.name)
            if topic.name not in self._next:
                self._next[topic.name] = self._starts(name)
            tuning = QUEUE_OF_BLOCKS if topic.holds_blocks else None
            start = self._next[topic.name]
            for records in read_batches(self._bootstrap, name, settings=self._settings, start=start, tuning=tuning):
                self._count(topic, records)
                for record in records:
                    start[record.partition] = record.offset + 1

    def _starts(self, name: str) -> dict[int, int]:
        if self._from_ms is None:
            return {}
        from_ms = max(self._from_ms, 0)
        client = admin_client(self._bootstrap, settings=self._settings)
        places = [(name, number) for number in partition_numbers(client, name)]
        return {
            number: offset for (_, number), offset in patiently(lambda: offsets_at(client, places, from_ms)).items()
        }

    def _count(self, topic: Topic, records: list[Record]) -> None:
        if topic is DECISION_FEATURES:
            for record in records:
                self._count_block(record)
            return
        events = [event for _, event in readable(records, _decode_event, not_counted)]
        if topic is EXAMPLES:
            _add_reports(self._into, events)
        else:
            self._into.add_alerts(np.array([_us(event.event_time) for event in events], np.int64))

    def _count_block(self, record: Record) -> None:
        try:
            rows = read_features(record)
        except BlockError as error:
            refuse(record, error, not_counted)
            return
        block = rows.block
        if block.kernel != KERNEL_VERSION:
            # Features of one name may mean something else there.
            return
        self._into.add_decisions(block.wide[EVENT_US][rows.rows], rows.own_features(), block.features[rows.rows, SCORE])


def count_files(directory: Path, into: Monitored) -> None:
    """Count what ``fraud-pipeline export DIRECTORY features alerts examples`` wrote; the last two may be missing.

    Raises:
        ExportError: There are no features, or files of the export are missing or damaged.
    """
    paths = {topic.name: sorted((directory / topic.name).rglob("*.parquet")) for topic in MONITORED}
    if not paths[DECISION_FEATURES.name]:
        raise ExportError(
            f"{directory} holds no Parquet file below {DECISION_FEATURES.name}/: write them with "
            f"`fraud-pipeline export {directory} features alerts examples`"
        )
    for topic in MONITORED:
        check_whole(directory / topic.name)
    columns = [f"feature_{name}" for name in FEATURES]
    for rows in _tables(paths[DECISION_FEATURES.name], ["event_time", "score", "versions_kernel", *columns]):
        table = rows.filter(pc.equal(rows.column("versions_kernel"), KERNEL_VERSION))
        features = np.column_stack([table.column(name).to_numpy() for name in columns])
        into.add_decisions(_times_us(table, "event_time"), features, table.column("score").to_numpy())
    for table in _tables(paths[ALERTS.name], ["event_time"]):
        into.add_alerts(_times_us(table, "event_time"))
    for table in _tables(paths[EXAMPLES.name], ["event_time", "known_at", "label"]):
        frauds = table.filter(pc.equal(table.column("label"), FRAUD))
        into.add_reports(_times_us(frauds, "event_time"), _times_us(frauds, "known_at"))


def _tables(paths: Iterable[Path], columns: list[str]) -> Iterator[pa.Table]:
    for path in paths:
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(_CHUNK_ROWS, columns=columns):
                    table = pa.Table.from_batches([batch])
                    # A record that could not be decoded has no event time.
                    yield table.filter(pc.is_valid(table.column("event_time")))
        except (pa.ArrowInvalid, KeyError, OSError) as error:
            raise ExportError(f"{path} is no file of an export ({error}): delete it, and export again") from error


def _times_us(table: pa.Table, name: str) -> NDArray[np.int64]:
    times = pc.cast(table.column(name), pa.timestamp("us", "UTC"))
    found: NDArray[np.int64] = pc.cast(times, pa.int64()).to_numpy()
    return found


def _add_reports(into: Monitored, events: Iterable[_Event]) -> None:
    frauds = [event for event in events if event.label == FRAUD and event.known_at is not None]
    into.add_reports(
        np.array([_us(event.event_time) for event in frauds], np.int64),
        np.array([_us(event.known_at) for event in frauds if event.known_at], np.int64),
    )


def _us(time: datetime) -> int:
    return (time - _EPOCH) // timedelta(microseconds=1)
