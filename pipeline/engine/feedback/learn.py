"""The learn agent's kernel: the online model learns from ``examples``, in order, and its versions are published."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

import msgspec

from pipeline.engine.partition_state.state import state_digest
from pipeline.engine.records.results import Result
from pipeline.scoring.kinds import Scorer
from pipeline.scoring.payload import payload_digest
from pipeline.scoring.prequential import Prequential
from pipeline.scoring.training_updates import RiverLearner
from schemas.errors import UNREADABLE
from schemas.messages import Example, ModelVersion
from schemas.records import Output, Record
from schemas.topics import MODELS

_decode = msgspec.json.Decoder(Example).decode
_encode = msgspec.json.Encoder().encode


RELEARN_AT_MOST: Final = 1_000
"""Examples that a rollback may have to learn again: saving a large classifier before each batch would cost more."""


class LearnPartition:
    """The online model's state: a replay of ``examples``, from a published version or from the start."""

    def __init__(self, learner: RiverLearner, next_offset: int = 0) -> None:
        """Go on with a learner, which has learned the examples before ``next_offset``."""
        self._learner = learner
        self.next_offset = next_offset
        """The first example that has not been learned."""
        self._published_offset = next_offset
        self._committed = (self.next_offset, self._published_offset)
        self._saved = learner.save()
        self._since: list[Example] = []
        self._pending: list[Example] = []
        self.prequential = Prequential()
        """The examples that were committed since it was made."""

    @property
    def unpublished(self) -> bool:
        """True if there are training updates that no published version has."""
        return self._published_offset != self.next_offset

    def learn(self, records: Sequence[Record]) -> Result:
        """Learn the records from ``next_offset`` on, in order."""
        result = Result()
        fresh = [record for record in records if record.offset >= self.next_offset]
        if fresh:
            examples = _read(fresh, result)
            # Noted first: where learning fails half-way, the undo must know of it.
            self._pending += examples
            outcomes = self._learner.learn_examples(examples)
            for outcome, count in outcomes.items():
                if count:
                    result.counts["training_update", outcome] += count
            self.next_offset = fresh[-1].offset + 1
        return result

    def publish(self) -> Scorer:
        """The present version, taken as published from now on."""
        self._published_offset = self.next_offset
        return self._learner.snapshot(self.next_offset)

    def commit(self) -> None:
        """The batch is committed."""
        self._committed = (self.next_offset, self._published_offset)
        self.prequential.add(self._pending)
        self._since += self._pending
        self._pending = []
        if len(self._since) > RELEARN_AT_MOST:
            self._saved, self._since = self._learner.save(), []

    def rollback(self) -> None:
        """The batch is not committed: take it back."""
        self.next_offset, self._published_offset = self._committed
        if self._pending:
            self._pending = []
            self._learner.go_back(self._saved)
            self._learner.learn_examples(self._since)

    def digest(self) -> str:
        """Return the digest of the committed state."""
        payload = self._learner.snapshot(self.next_offset).to_payload()
        return state_digest(self.next_offset, self._published_offset, payload)


def _read(records: Sequence[Record], result: Result) -> list[Example]:
    """Return the examples among ``records``; the others become dead letters of ``result``."""
    examples = []
    for record in records:
        try:
            examples.append(_decode(record.value or b""))
        except UNREADABLE as error:
            result.unreadable(record, "learn", error)
    return examples


def model_record(name: str, version: str, payload: bytes, now: datetime) -> Output:
    """Return the record of ``models`` with the content of a version.

    Args:
        name: What the version is of, such as ``lightgbm`` or ``policy``.
        version: What decisions call it.
        payload: One JSON object; the SHA-256 of these bytes becomes the key.
        now: Stamped as ``published_at``.
    """
    digest = payload_digest(payload)
    message = ModelVersion(name=name, version=version, digest=digest, published_at=now, payload=msgspec.Raw(payload))
    return Output(MODELS, digest.encode(), _encode(message))
