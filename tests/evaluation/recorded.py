"""What the topics hold after a run, as columns; and the logs of sampled cards and merchants, as they were recorded."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple

import msgspec
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.engine.encoding.row_columns import SOURCE_OFFSET, SOURCE_PARTITION
from pipeline.engine.scores.block_messages import read_messages
from pipeline.engine.scores.feature_blocks import OWN_FEATURES, SOURCE_TOPIC, read_features
from pipeline.features.catalogue import FEATURES
from pipeline.kafka.readers.topic_reader import read_batches
from pipeline.settings import Settings
from schemas.messages import LogPosition, ModelScores, ProfiledLabel, RecordPosition
from schemas.records import Record
from schemas.times import EPOCH
from schemas.topics import DEAD_LETTERS, DECISION_FEATURES, DECISIONS, PROFILED, TRANSACTIONS, Topic
from tests.helpers.expected import decode_transaction, merchant_row, transaction_row

MICROSECOND = timedelta(microseconds=1)
LONG_AGO_US = -(2**62)

Identity = tuple[str, str]
"""Card and transaction."""
_Source = tuple[str, int, int]
"""Topic, partition and offset of the producer's record."""


class _Versions(msgspec.Struct, gc=False):
    lightgbm: str
    river: str
    policy: str


class _Decision(msgspec.Struct, gc=False):
    transaction_id: str
    card_id: str
    merchant_id: str
    event_time: datetime
    score: float
    model_scores: ModelScores
    logit: float
    action: str
    versions: _Versions
    source: RecordPosition
    log: LogPosition
    ingested_at: datetime
    decided_at: datetime


class Versions(NamedTuple):
    """What a decision says that it was made by."""

    lightgbm: str
    river: str
    policy: str


@dataclass(slots=True)
class Decisions:
    """All decisions, one row each; arrays of n rows."""

    identity: list[Identity]
    versions: list[Versions]
    event_time_us: NDArray[np.int64]
    score: NDArray[np.float64]
    lightgbm: NDArray[np.float64]
    river: NDArray[np.float64]
    logit: NDArray[np.float64]
    alert: NDArray[np.bool_]
    latency_s: NDArray[np.float64]
    """From the card agent's batch to the decision."""
    features: NDArray[np.float64]
    """Shape (n, len(FEATURES)), NaN for no value: what the models saw, as ``features`` has it."""
    row: dict[Identity, int] = field(default_factory=dict)
    """Of each identity; of one that was decided several times, the last."""

    def __post_init__(self) -> None:
        self.row = {identity: row for row, identity in enumerate(self.identity)}

    def rows_by_versions(self) -> dict[Versions, NDArray[np.intp]]:
        """The rows that each combination of versions decided."""
        rows: dict[Versions, list[int]] = {}
        for row, versions in enumerate(self.versions):
            rows.setdefault(versions, []).append(row)
        return {versions: np.array(chosen, np.intp) for versions, chosen in rows.items()}


class Topics:
    """The topics of one run."""

    def __init__(self, bootstrap: str, settings: Settings) -> None:
        self._bootstrap, self._settings = bootstrap, settings

    def batches(self, topic: Topic) -> Iterator[list[Record]]:
        """Committed records of a topic, in order within a partition."""
        return read_batches(self._bootstrap, self._settings.topic(topic.name), settings=self._settings)

    def decisions(self) -> Decisions:
        """All of `decisions`, joined with `features`.

        Raises:
            ValueError: A decision has no row of features.
        """
        decode = msgspec.json.Decoder(_Decision).decode
        parts: list[tuple[NDArray[np.float64], ...]] = []
        identity: list[Identity] = []
        versions: list[Versions] = []
        known: dict[Versions, Versions] = {}
        times: list[NDArray[np.int64]] = []
        sources: list[_Source] = []
        for records in self.batches(DECISIONS):
            read = [decode(record.value or b"") for record in records]
            identity += [(transaction.card_id, transaction.transaction_id) for transaction in read]
            for item in read:
                named = Versions(item.versions.lightgbm, item.versions.river, item.versions.policy)
                versions.append(known.setdefault(named, named))
            sources += [(item.source.topic, item.source.partition, item.source.offset) for item in read]
            times.append(np.array([(item.event_time - EPOCH) // MICROSECOND for item in read], np.int64))
            parts.append(
                (
                    np.array([decision.score for decision in read]),
                    np.array([item.model_scores.lightgbm for item in read]),
                    np.array([item.model_scores.river for item in read]),
                    np.array([item.logit for item in read]),
                    np.array([decision.action == "alert" for decision in read], np.float64),
                    np.array([(item.decided_at - item.ingested_at).total_seconds() for item in read]),
                )
            )
        if not parts:
            empty = np.empty(0)
            parts, times = [(empty,) * 6], [np.empty(0, np.int64)]
        score, lightgbm, river, logit, alert, latency_s = (
            np.concatenate(column) for column in zip(*parts, strict=True)
        )
        return Decisions(
            identity=identity,
            versions=versions,
            event_time_us=np.concatenate(times),
            score=score,
            lightgbm=lightgbm,
            river=river,
            logit=logit,
            alert=alert.astype(np.bool_),
            latency_s=latency_s,
            features=self._features(sources),
        )

    def _features(self, sources: Sequence["_Source"]) -> NDArray[np.float64]:
        """Return the features of decisions, shape (n, len(FEATURES)), from their rows on `features`."""
        rows: dict[_Source, int] = {}
        count = 0
        parts = [np.empty((0, len(FEATURES)))]
        for records in self.batches(DECISION_FEATURES):
            for record in records:
                found = read_features(record)
                if found.names != OWN_FEATURES:
                    raise ValueError(f"features partition {record.partition} offset {record.offset} has other features")
                block = found.block
                topics = [block.names[code].decode() for code in block.codes[SOURCE_TOPIC]]
                columns = (block.whole(column).tolist() for column in (SOURCE_PARTITION, SOURCE_OFFSET))
                at = zip(topics, *columns, strict=True)
                rows |= dict(zip(at, range(count, count + block.rows), strict=True))
                count += block.rows
                parts.append(found.own_features())
        if missing := [source for source in sources if source not in rows]:
            raise ValueError(f"{len(missing)} decisions have no row of features, such as that of {missing[0]}")
        return np.concatenate(parts)[[rows[source] for source in sources]]

    def dead_letters(self) -> dict[str, int]:
        """Number of dead letters, by error."""
        counts: dict[str, int] = {}
        for records in self.batches(DEAD_LETTERS):
            for record in records:
                error = dict(record.headers).get("dead-letter-error") or b"?"
                counts[error.decode()] = counts.get(error.decode(), 0) + 1
        return counts

    def transactions(self, cards: set[str]) -> tuple[list[Identity], pd.DataFrame]:
        """Identities of all transactions; and the log of ``cards``, as the reference of card features reads it."""
        identities: list[Identity] = []
        rows = []
        newest = _Newest()
        for records in self.batches(TRANSACTIONS):
            for record in records:
                transaction = decode_transaction(record.value or b"")
                identities.append((transaction.card_id, transaction.transaction_id))
                before_us = newest.before(record.partition, (transaction.event_time - EPOCH) // MICROSECOND)
                if transaction.card_id in cards:
                    rows.append({**transaction_row(transaction), "partition_newest_us": before_us})
        return identities, _frame(rows)

    def profiled(self, merchants: set[str]) -> tuple[int, int, pd.DataFrame]:
        """Labels in `profiled`; those that stand before their transaction; and the log of ``merchants``.

        The log is as the reference of merchants reads it.
        Of a transaction everything comes from the producer's own bytes, of a label what the card agent recorded.
        """
        labels, early, rows = 0, 0, []
        seen: set[tuple[int, str, str]] = set()
        newest = _Newest()
        for records in self.batches(PROFILED):
            for record, transaction in (
                (source, message) for source in records for message in read_messages(source.value)
            ):
                place = (record.partition, transaction.card_id, transaction.transaction_id)
                if isinstance(transaction, ProfiledLabel):
                    labels += 1
                    early += place not in seen
                    before_us = newest.before(record.partition, None)
                else:
                    seen.add(place)
                    before_us = newest.before(record.partition, transaction.event_time_us)
                if transaction.merchant_id not in merchants:
                    continue
                rows.append({**merchant_row(transaction), "partition_newest_us": before_us})
        return labels, early, _frame(rows)


class _Newest:
    """The newest event time of each partition's transactions: what lies 37 days behind it has left the windows."""

    def __init__(self) -> None:
        self._stream_time_us: dict[int, int] = {}

    def before(self, partition: int, event_time_us: int | None) -> int:
        """The newest so far; a transaction's own time (None for a label) counts from the next record on."""
        stream_time_us = self._stream_time_us.get(partition, LONG_AGO_US)
        if event_time_us is not None:
            self._stream_time_us[partition] = max(stream_time_us, event_time_us)
        return stream_time_us


def _frame(rows: list[dict[str, object]]) -> pd.DataFrame:
    columns = ["kind", "card_id", "merchant_id", "transaction", "event_time_us", "amount_minor", "counts"]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=columns)
