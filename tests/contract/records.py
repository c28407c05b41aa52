"""A transaction and a label as producers write them, and ways to spoil them."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.features.clock import hours, weekdays
from schemas.codec import AcceptedTransaction, decode_label, decode_transaction
from schemas.messages import Label
from schemas.money import load

RATES = load((Path(__file__).resolve().parents[2] / "pipeline/data/rates.json").read_bytes())
ARRIVED_US = 1_709_294_400_000_000
TOLERANCE_US = 300_000_000

TRANSACTION: dict[str, Any] = {
    "transaction_id": "t1",
    "event_time": "2024-03-01T11:59:30.000001Z",
    "card_id": "c1",
    "merchant_id": "m1",
    "amount": 12.34,
    "currency": "EUR",
}
LABEL: dict[str, Any] = {
    "transaction_id": "t1",
    "card_id": "c1",
    "label": "fraud",
    "source": "analyst",
    "labelled_at": "2024-03-01T12:00:00Z",
}
WITH_AMOUNT = json.dumps(TRANSACTION).encode()


def accept(value: bytes | None) -> AcceptedTransaction:
    return decode_transaction(value, record_timestamp_us=ARRIVED_US, future_tolerance_us=TOLERANCE_US, rates=RATES)


def hour_and_weekday(accepted: AcceptedTransaction) -> tuple[float, float]:
    clock_us = np.array([accepted.clock_us])
    return float(hours(clock_us)[0]), float(weekdays(clock_us)[0])


def take(value: bytes | None, arrived_us: int = ARRIVED_US) -> Label:
    return decode_label(value, record_timestamp_us=arrived_us, future_tolerance_us=TOLERANCE_US)


def transaction(**changes: Any) -> bytes:
    return json.dumps({**TRANSACTION, **changes}).encode()


def with_amount(text: bytes) -> bytes:
    return WITH_AMOUNT.replace(b"12.34", text)


def without(name: str) -> bytes:
    return json.dumps({key: value for key, value in TRANSACTION.items() if key != name}).encode()
