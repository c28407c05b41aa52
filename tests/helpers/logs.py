"""Partitions of topics in memory, and what producers and analysts write into them."""

import json
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from typing import Any, TypeVar

import msgspec

from pipeline.engine.records.accepted_labels import LabelOptions, accept
from pipeline.engine.records.results import Result
from pipeline.engine.scores.block_messages import read_messages, write_messages
from schemas.messages import (
    Alert,
    Decision,
    DecisionFeatures,
    Example,
    LogPosition,
    ModelScores,
    Profiled,
    RecordPosition,
    Versions,
)
from schemas.records import Headers, Output, Record
from schemas.times import EPOCH
from schemas.topics import ACCEPTED_LABELS, LABELS, PROFILED, Topic
from tests.helpers.blocks import features_block

LABEL_OPTIONS = LabelOptions(future_tolerance_us=300_000_000, partitions=1)
START = datetime(2024, 3, 1, tzinfo=UTC)
"""A Friday, midnight."""

T = TypeVar("T", bound=msgspec.Struct)
decode_decision = msgspec.json.Decoder(Decision).decode
decode_alert = msgspec.json.Decoder(Alert).decode
decode_example = msgspec.json.Decoder(Example).decode
_encode = msgspec.json.Encoder(decimal_format="number").encode


def after(days: float = 0.0, **more: float) -> datetime:
    """``START`` and some time; ``more`` as for timedelta."""
    return START + timedelta(days=days, **more)


def microseconds(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


def golden(name: str, kind: type[T], **changes: Any) -> T:
    """A message of the wire contract's golden bytes, with other fields."""
    found = msgspec.json.decode((files("schemas") / f"golden/v1/{name}.json").read_bytes(), type=kind)
    return msgspec.structs.replace(found, **changes)


class Log:
    """One partition of a topic: gives every record its offset."""

    def __init__(self, topic: Topic, partition: int = 0) -> None:
        self.topic, self.partition = topic, partition
        self.records: list[Record] = []

    def append(
        self, value: bytes | None, at: datetime = START, key: bytes | None = b"key", headers: Headers = ()
    ) -> Record:
        """Add a record with the timestamp ``at`` (Kafka keeps milliseconds)."""
        timestamp_ms = microseconds(at) // 1_000
        record = Record(self.topic.name, self.partition, len(self.records), timestamp_ms, key, value, headers)
        self.records.append(record)
        return record

    def take(self, result: Result, at: datetime = START) -> list[Record]:
        """Add the outputs of ``result`` for this topic, blocks cut into single rows; returns the new records."""
        if self.topic is PROFILED:
            return [self.append(block_of(message), at, None) for message in profiled(result, PROFILED)]
        return self.take_whole(result, at)

    def take_whole(self, result: Result, at: datetime = START) -> list[Record]:
        """As `take`, with blocks as they were written."""
        return [self.append(output.value, at, output.key, output.headers) for output in to(self.topic, result)]


class LabelLog(Log):
    """One partition of ``accepted-labels``, to which labels are appended as their producers write them.

    A label that the label agent refuses is appended as it is: a record that no label agent wrote.
    """

    def __init__(self, partition: int = 0) -> None:
        super().__init__(ACCEPTED_LABELS, partition)

    def append(
        self, value: bytes | None, at: datetime = START, key: bytes | None = b"key", headers: Headers = ()
    ) -> Record:
        """Add what the label agent forwards of a label that it reads at the same offset of ``labels``."""
        label = Record(LABELS.name, self.partition, len(self.records), microseconds(at) // 1_000, key, value, headers)
        (output,) = accept([label], LABEL_OPTIONS).outputs
        if output.topic is not ACCEPTED_LABELS:
            return super().append(value, at, key, headers)
        return super().append(output.value, at, output.key, output.headers)


def to(topic: Topic, result: Result) -> list[Output]:
    """The outputs for ``topic``."""
    return [output for output in result.outputs if output.topic is topic]


def profiled(result: Result, topic: Topic) -> list[Profiled]:
    """The rows of all blocks of ``result``."""
    return [message for output in to(topic, result) for message in read_messages(output.value)]


def decode_profiled(value: bytes) -> Profiled:
    """The only row of a block."""
    (message,) = read_messages(value)
    return message


def block_of(*messages: Profiled) -> bytes:
    """A block of some rows."""
    return write_messages(messages)


def reason(output: Output, name: str) -> str:
    """What a dead letter's own header ``dead-letter-<name>`` says."""
    (value,) = [value for header, value in output.headers if header == f"dead-letter-{name}"]
    assert value is not None
    return value.decode()


def transaction(number: int = 0, at: datetime = START, **changes: Any) -> bytes:
    """A transaction as a producer writes it; ``changes`` are fields, None leaves a field out."""
    fields: dict[str, Any] = {
        "transaction_id": f"t{number}",
        "event_time": at.isoformat(),
        "card_id": "c1",
        "merchant_id": "m1",
        "amount": 12.34,
        "currency": "EUR",
    }
    return json.dumps({name: value for name, value in {**fields, **changes}.items() if value is not None}).encode()


def label(number: int = 0, at: datetime = START, known: str = "fraud", **changes: Any) -> bytes:
    """A label as an analyst's program writes it, of transaction ``number`` of `transaction`."""
    fields: dict[str, Any] = {
        "transaction_id": f"t{number}",
        "card_id": "c1",
        "label": known,
        "source": "analyst",
        "labelled_at": at.isoformat(),
    }
    return json.dumps({**fields, **changes}).encode()


def decision(number: int = 0, at: datetime = START, **changes: Any) -> bytes:
    """A decision as the score agent writes it."""
    fields: dict[str, Any] = {
        **_decided(number, at),
        "amount": 12.34,
        "currency": "EUR",
        "base_currency": "EUR",
        "model_scores": ModelScores(lightgbm=0.25, river=0.25),
        "action": "allow",
        "threshold": 0.5,
        "case_id": "case",
        "case_sequence": 1,
        "ingested_at": at,
        "decided_at": at,
    }
    return _encode(Decision(**{**fields, **changes}))


def features(number: int = 0, at: datetime = START, **changes: Any) -> bytes:
    """A block of ``features`` with what the score agent writes of `decision`."""
    return features_block([feature_row(number, at, **changes)])


def feature_row(number: int = 0, at: datetime = START, **changes: Any) -> DecisionFeatures:
    """The row of `decision` on ``features``."""
    return DecisionFeatures(**{**_decided(number, at), **changes})


def _decided(number: int, at: datetime) -> dict[str, Any]:
    """Fields that a decision shares with its row on ``features``."""
    return {
        "transaction_id": f"t{number}",
        "card_id": "c1",
        "merchant_id": "m1",
        "event_time": at,
        "amount_base": 12.34,
        "score": 0.25,
        "logit": -1.0986122886681098,
        "river_logit": -1.0,
        "features": {"amount": 12.34, "card_usual_amount": None},
        "versions": Versions(lightgbm="base", river="r@0", policy="p", kernel="k", rates="1"),
        "source": RecordPosition(topic="transactions", partition=0, offset=number),
        "log": LogPosition(partition=0, offset=2 * number),
    }
