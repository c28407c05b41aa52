"""Runs as their topics hold them: one of decisions, and one of the features that the models saw."""

from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray

from pipeline.backtest.input.merge import Numbering
from pipeline.engine.encoding.blocks import BlockError
from pipeline.engine.encoding.row_columns import SOURCE_OFFSET, SOURCE_PARTITION
from pipeline.engine.scores.decisions import SELECTIONS, Decisions
from pipeline.engine.scores.feature_blocks import NUMBERS, first_numbers, read_features
from pipeline.kafka.records.internal import not_counted, refuse
from schemas.errors import UNREADABLE
from schemas.messages import RecordPosition
from schemas.records import Record
from schemas.topics import DECISION_FEATURES

RUN: Final = "reprocess-run"
"""Header of every record: which run it is of."""
DECIDED: Final = "reprocess-decisions"
"""Header of the records of a run's last transaction: how many decisions the whole run has."""
_FINGERPRINT_BITS: Final = 64


class ReprocessError(ValueError):
    """The topic cannot be written as it was asked; the text says what to do."""


class RunTopics(NamedTuple):
    """Full names of the topics of a run."""

    decisions: str
    features: str


def features_topic(decisions: str) -> str:
    """Return the name of the topic of features beside that of the decisions of a run.

    >>> features_topic("candidate")
    'candidate-features'
    """
    return f"{decisions}-{DECISION_FEATURES.name}"


class RunRows(NamedTuple):
    """Decisions that one topic holds, or whose features it holds."""

    runs: frozenset[str | None]
    """None for records that no run has written."""
    size: int
    fingerprint: int
    total: int | None
    """Decisions of the whole run; None where it was not written to its end."""


NO_ROWS: Final = RunRows(frozenset(), 0, 0, None)


class Present(NamedTuple):
    """Content of the topics of a run, both written by the same transactions."""

    decisions: RunRows = NO_ROWS
    features: RunRows = NO_ROWS

    @property
    def total(self) -> int | None:
        """Decisions of the whole run; None where it was not written to its end."""
        return self.features.total if self.decisions.total is None else self.decisions.total

    def refuse_foreign(self, topics: RunTopics) -> None:
        """Raise `ReprocessError` where a topic holds records that no run has written."""
        for topic, rows in zip(topics, self, strict=True):
            if None in rows.runs:
                raise ReprocessError(
                    f"topic {topic} holds records that no backtest has written: name a topic that is for this alone"
                )

    def refuse_other(self, topics: RunTopics, run: str) -> None:
        """Raise `ReprocessError` where a topic holds another run than ``run``, or not all that it once held."""
        held = [*zip(topics, self, ("", "the features of "), strict=True)]
        for topic, rows, what in held:
            if others := ", ".join(sorted(str(other) for other in rows.runs - {run})):
                raise ReprocessError(
                    f"topic {topic} holds {what}{rows.size:,} decisions of run {others}; this one is {run}, of other "
                    "models, another range, other options or other settings: name another topic, or replace what is "
                    "there with --replace"
                )
        for topic, rows, what in held:
            if self.total is not None and rows.size != self.total:
                raise ReprocessError(
                    f"topic {topic} holds {what}{rows.size:,} of the {self.total:,} decisions that run {run} has "
                    "written: the others were deleted, or are behind the topic's retention. Begin anew with --replace, "
                    "and a longer retention.ms"
                )
        if self.decisions.size != self.features.size:
            raise ReprocessError(
                f"topic {topics.decisions} holds {self.decisions.size:,} decisions of run {run}, and topic "
                f"{topics.features} the features of {self.features.size:,}: the others were deleted, or are behind "
                "the topic's retention. Begin anew with --replace, and a longer retention.ms"
            )


class _WrittenDecision(msgspec.Struct):
    """Fields of a decision that tell it from the same decision of a log that has changed."""

    source: RecordPosition
    score: float
    selection: str | None = None


_decode = msgspec.json.Decoder(_WrittenDecision).decode


def look(batches: Iterable[Sequence[Record]], hashes: Callable[[Record], Sequence[int]]) -> RunRows:
    """Return what the records of a topic are.

    A record of a run that cannot be read is reported, and counts as one that was deleted. ``hashes`` is
    `hashes_of_decision` or `hashes_of_block`.
    """
    runs: set[str | None] = set()
    size = fingerprint = 0
    total = None
    for records in batches:
        for record in records:
            headers = dict(record.headers)
            run = headers.get(RUN)
            runs.add(None if run is None else run.decode())
            if run is None:
                return NO_ROWS._replace(runs=frozenset(runs))
            if (text := headers.get(DECIDED)) is not None:
                total = int(text)
            try:
                found = hashes(record)
            except (*UNREADABLE, BlockError) as error:
                refuse(record, error, not_counted)
                continue
            size += len(found)
            fingerprint += sum(found)
    return RunRows(frozenset(runs), size, fingerprint % 2**_FINGERPRINT_BITS, total)


def hashes_of_decision(record: Record) -> list[int]:
    """Return the hash of a decision; those of several are added up, since partitions have no common order."""
    decision = _decode(record.value or b"")
    return [_hash(decision.source.partition, decision.source.offset, decision.score, decision.selection)]


def hashes_of_block(record: Record) -> list[int]:
    """Return the hash of each row of a block of features. Raises as `read_features`."""
    rows = read_features(record)
    block, at = rows.block, rows.rows
    positions = zip(*(block.whole(column)[at].tolist() for column in (SOURCE_PARTITION, SOURCE_OFFSET)), strict=True)
    return _feature_hashes(positions, block.features[at, : len(NUMBERS)], rows.own_features())


class Fingerprint:
    """Sums of the hashes of decisions, and of their features, to be compared with those of topics."""

    def __init__(self, numbering: Numbering) -> None:
        self._numbering = numbering
        self._decisions = self._features = 0

    def add(self, decisions: Decisions) -> None:
        """Add some decisions."""
        positions = [*map(self._numbering.position, decisions.transactions.row.tolist())]
        for position, score, code in zip(
            positions, decisions.score.tolist(), decisions.selection.tolist(), strict=True
        ):
            self._decisions += _hash(*position, score, SELECTIONS[code] if code >= 0 else None)
        numbers = first_numbers(decisions.logits, decisions.score)
        self._features += sum(_feature_hashes(positions, numbers, decisions.features))

    def is_of(self, present: Present) -> bool:
        """Return whether both topics hold exactly the decisions that were added."""
        sums = tuple(total % 2**_FINGERPRINT_BITS for total in (self._decisions, self._features))
        return sums == (present.decisions.fingerprint, present.features.fingerprint)


def _hash(*values: object) -> int:
    return xxhash.xxh3_64_intdigest(msgspec.msgpack.encode(values))


def _feature_hashes(
    positions: Iterable[tuple[int, int]], numbers: NDArray[np.float64], features: NDArray[np.float64]
) -> list[int]:
    columns = np.concatenate([numbers, features], axis=1)
    # Of the many NaN all are one.
    columns[np.isnan(columns)] = np.nan
    return [_hash(*position, row.tobytes()) for position, row in zip(positions, columns, strict=True)]
