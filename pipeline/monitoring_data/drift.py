"""Inputs of drift detection: decisions, alerts and reports, from a cluster's topics or from exported files."""

from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.engine.encoding.row_columns import EVENT_US
from pipeline.engine.scores.feature_blocks import SCORE
from pipeline.exports.intended_contents import export_batches, require_export
from pipeline.features.catalogue import DEFAULT_FEATURES, FEATURES
from pipeline.features.feature_set import KERNEL_REVISION, is_comparable
from pipeline.kafka.cluster.log_offsets import starts_at
from pipeline.kafka.readers.topic_reader import QUEUE_OF_BLOCKS, read_batches
from pipeline.kafka.records.internal import not_counted, readable, readable_features
from pipeline.learning.labels import FRAUD
from pipeline.monitoring.alert_outcomes import AlertOutcomes, Key
from pipeline.monitoring.daily import DailyCounts
from pipeline.scoring.distributions import FeatureDistribution
from pipeline.scoring.lightgbm_model import LightGBMModel
from pipeline.settings import Settings
from schemas.codec import timestamp_us
from schemas.records import Record
from schemas.topics import ALERTS, DECISION_FEATURES, EXAMPLES, Topic

MONITORED: Final = (DECISION_FEATURES, EXAMPLES, ALERTS)
"""Examples before alerts: those that the examples are of have been raised by then."""
MONITORED_NAMES: Final = [topic.name for topic in MONITORED]


class _Event(msgspec.Struct):
    """Fields of an alert or an example that are read."""

    event_time: datetime
    transaction_id: str = ""
    card_id: str = ""
    label: str | None = None
    known_at: datetime | None = None
    score: float | None = None
    amount_base: float = 0.0
    weight: float = 1.0

    @property
    def key(self) -> Key:
        """Card and transaction."""
        return self.card_id, self.transaction_id


_decode_event: Final = msgspec.json.Decoder(_Event).decode


class Monitored:
    """All that was read so far: daily counts in the bins of a LightGBM version, and the outcomes of alerts.

    Only features that the trees ask for are counted. Without a version the default features are, in tenths of the
    first rows.
    """

    def __init__(self, model: LightGBMModel | None) -> None:
        self.outcomes = AlertOutcomes()
        """Outcomes of alerts, of a cluster's topics alone."""
        self.importance: dict[str, float] = dict.fromkeys(DEFAULT_FEATURES, 1 / len(DEFAULT_FEATURES))
        """Gain share by feature."""
        distributions: list[FeatureDistribution] = []
        if model is not None:
            self.importance = model.gain_shares
            distributions = [known for known in model.distributions if known.name in self.importance]
        self.counts = DailyCounts(distributions, tenths_of=() if distributions else list(self.importance))


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
                from_ms = self._from_ms
                self._next[topic.name] = (
                    {} if from_ms is None else starts_at(self._bootstrap, name, from_ms, settings=self._settings)
                )
            tuning = QUEUE_OF_BLOCKS if topic.holds_blocks else None
            start = self._next[topic.name]
            for records in read_batches(self._bootstrap, name, settings=self._settings, start=start, tuning=tuning):
                self._count(topic, records)
                for record in records:
                    start[record.partition] = record.offset + 1

    def _count(self, topic: Topic, records: list[Record]) -> None:
        if topic is DECISION_FEATURES:
            for _, rows in readable_features(records, not_counted):
                block = rows.block
                # Features of one name may mean something else in another kernel.
                if is_comparable(block.kernel):
                    event_time_us, score = block.whole(EVENT_US)[rows.rows], block.features[rows.rows, SCORE]
                    self._into.counts.add_decisions(event_time_us, rows.own_features(), score)
            return
        events = [event for _, event in readable(records, _decode_event, not_counted)]
        outcomes = self._into.outcomes
        if topic is EXAMPLES:
            _add_reports(self._into.counts, events)
            for event in events:
                if event.label is not None:
                    of_example = (event.label, event.amount_base, event.weight)
                    outcomes.add_example(event.key, timestamp_us(event.event_time), *of_example)
        else:
            for event in events:
                outcomes.add_alert(event.key, timestamp_us(event.event_time))
            self._into.counts.add_alerts(np.array([timestamp_us(event.event_time) for event in events], np.int64))


def count_files(directory: Path, into: Monitored) -> None:
    """Count what ``fraud-pipeline export DIRECTORY features alerts examples`` wrote; the last two may be missing.

    Raises:
        ExportError: There are no features, or files of the export are missing or damaged.
    """
    require_export(directory, [DECISION_FEATURES.name], MONITORED_NAMES)
    columns = [f"feature_{name}" for name in FEATURES]
    for rows in _tables(directory, DECISION_FEATURES, ["event_time", "score", "versions_kernel", *columns]):
        table = rows.filter(pc.starts_with(rows.column("versions_kernel"), f"{KERNEL_REVISION}-"))
        features = np.column_stack([table.column(name).to_numpy() for name in columns])
        into.counts.add_decisions(_times_us(table, "event_time"), features, table.column("score").to_numpy())
    for table in _tables(directory, ALERTS, ["event_time"]):
        into.counts.add_alerts(_times_us(table, "event_time"))
    for table in _tables(directory, EXAMPLES, ["event_time", "known_at", "label", "score"]):
        frauds = table.filter(pc.equal(table.column("label"), FRAUD))
        into.counts.add_reports(
            _times_us(frauds, "event_time"), _times_us(frauds, "known_at"), frauds.column("score").to_numpy()
        )


def _tables(directory: Path, topic: Topic, columns: list[str]) -> Iterator[pa.Table]:
    for batch in export_batches(directory, topic.name, columns):
        table = pa.Table.from_batches([batch])
        # A record that could not be decoded has no event time.
        yield table.filter(pc.is_valid(table.column("event_time")))


def _times_us(table: pa.Table, name: str) -> NDArray[np.int64]:
    times = pc.cast(table.column(name), pa.timestamp("us", "UTC"))
    found: NDArray[np.int64] = pc.cast(times, pa.int64()).to_numpy()
    return found


def _add_reports(counts: DailyCounts, events: Iterable[_Event]) -> None:
    frauds = [event for event in events if event.label == FRAUD and event.known_at is not None]
    counts.add_reports(
        np.array([timestamp_us(event.event_time) for event in frauds], np.int64),
        np.array([timestamp_us(event.known_at) for event in frauds if event.known_at], np.int64),
        np.array([np.nan if event.score is None else event.score for event in frauds], np.float64),
    )
