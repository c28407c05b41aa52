"""The learn agent's kernel: the online model learns from ``examples``, in order, and its versions are published."""

from collections.abc import Sequence
from datetime import datetime

import msgspec

from pipeline.engine.results import Result, UnreadableRecord
from pipeline.scoring.payload import payload_digest
from pipeline.scoring.river_model import RiverLearner, RiverModel
from schemas.messages import Example, ModelVersion
from schemas.records import Output, Record
from schemas.topics import MODELS

_decode = msgspec.json.Decoder(Example).decode
_encode = msgspec.json.Encoder().encode


class LearnPartition:
    """The online model's state: a fold over ``examples``, from a checkpoint or from the start."""

    def __init__(self, learner: RiverLearner, next_offset: int = 0, *, published: bool = True) -> None:
        self._learner = learner
        self.next_offset = next_offset
        """The first example that has not been folded."""
        self._published_offset = next_offset if published else -1

    @property
    def unpublished(self) -> bool:
        """Whether there are lessons that no published version has."""
        return self._published_offset != self.next_offset

    def learn(self, records: Sequence[Record]) -> Result:
        """Fold the records from ``next_offset`` on, in order."""
        result = Result()
        fresh = [record for record in records if record.offset >= self.next_offset]
        if fresh:
            outcomes = self._learner.learn_examples([_read(record) for record in fresh])
            for outcome, count in outcomes.items():
                if count:
                    result.counts["lesson", outcome] += count
            self.next_offset = fresh[-1].offset + 1
        return result

    def publish(self) -> RiverModel:
        """The present version, taken as published from now on."""
        self._published_offset = self.next_offset
        return self._learner.snapshot(self.next_offset)


def _read(record: Record) -> Example:
    try:
        return _decode(record.value or b"")
    except msgspec.MsgspecError as error:
        raise UnreadableRecord(record, error) from error


def model_record(name: str, version: str, payload: bytes, now: datetime) -> Output:
    """The record that puts a version in force."""
    message = ModelVersion(
        name=name,
        version=version,
        digest=payload_digest(payload),
        published_at=now,
        payload=msgspec.Raw(payload),
    )
    return Output(MODELS, name.encode(), _encode(message))
