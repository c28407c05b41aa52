"""Features as the slow reference computes them from logs alone, and the comparison with what was served."""

import math
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

import msgspec
import pandas as pd

from pipeline.features.catalogue import FEATURES
from schemas.messages import Decision, ProfiledLabel, ProfiledTransaction, Transaction
from schemas.records import Record
from tests.helpers.logs import EPOCH, decode_profiled, microseconds
from tests.reference.features import card_features, merchant_features

Key = tuple[str, str]
COUNTING = ("purchase", "cash")
LONG_AGO_US = -(2**62)

_decode_transaction = msgspec.json.Decoder(Transaction).decode


def expected_features(profiled: Iterable[Record]) -> dict[Key, dict[str, float]]:
    """Features of every transaction in ``profiled``, by (card, transaction).

    Takes from the messages what the producer wrote and the order of both logs, nothing that the kernel computed.
    Amounts must be in euros.
    """
    in_log_order = sorted(profiled, key=lambda record: (record.partition, record.offset))
    messages = [decode_profiled(record.value or b"") for record in in_log_order]
    transactions = [message for message in messages if isinstance(message, ProfiledTransaction)]
    by_card = sorted(transactions, key=lambda message: (message.source.partition, message.source.offset))
    # The horizon is a matter of the partition: of `transactions` for the card, of `profiled` for the merchant.
    card_rows = with_newest([(message.source.partition, _card_row(message)) for message in by_card])
    merchant_rows = with_newest(
        [(record.partition, _merchant_row(message)) for record, message in zip(in_log_order, messages, strict=True)]
    )
    features: dict[Key, dict[str, float]] = {}
    for frame, computed in (
        (card_rows, card_features(pd.DataFrame(card_rows))),
        (merchant_rows, merchant_features(pd.DataFrame(merchant_rows))),
    ):
        for row, values in zip(frame, computed.to_dict("records"), strict=True):
            if row["kind"] == "transaction":
                features.setdefault(row["transaction"], {}).update(values)  # type: ignore[arg-type]
    return features


def with_newest(rows: Iterable[tuple[int, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Rows of (partition, row) in log order, each with its partition's newest event time before it."""
    newest: dict[int, int] = {}
    told = []
    for partition, row in rows:
        before = newest.get(partition, LONG_AGO_US)
        told.append({**row, "partition_newest_us": before})
        if row["kind"] == "transaction":
            newest[partition] = max(before, row["event_time_us"])
    return told


def differences(decisions: Iterable[Decision], expected: Mapping[Key, Mapping[str, float]]) -> list[str]:
    """Where decisions have other features than ``expected``, in words; empty when all agree."""
    found = []
    for decision in decisions:
        key = (decision.card_id, decision.transaction_id)
        if tuple(decision.features) != FEATURES:
            found.append(f"{key} has other features than the kernel")
        for name, served in decision.features.items():
            right = expected[key][name]
            same = math.isnan(right) if served is None else math.isclose(served, right, rel_tol=1e-9, abs_tol=1e-9)
            if not same:
                found.append(f"{key} {name}: served {served}, expected {right}")
    return found


def _card_row(message: ProfiledTransaction) -> dict[str, Any]:
    stated = _decode_transaction(message.transaction)
    assert stated.currency == "EUR"
    time = EPOCH + timedelta(microseconds=microseconds(stated.event_time))
    midnight = time.replace(hour=0, minute=0, second=0, microsecond=0)
    return {
        "kind": "transaction",
        "transaction": (stated.card_id, stated.transaction_id),
        "card_id": stated.card_id,
        "merchant_id": stated.merchant_id,
        "event_time_us": microseconds(stated.event_time),
        "amount_minor": int(stated.amount * 100),
        "counts": stated.transaction_type in COUNTING,
        "hour": (time - midnight) / timedelta(hours=1),
        "weekday": float(time.weekday()),
    }


def _merchant_row(message: ProfiledTransaction | ProfiledLabel) -> dict[str, Any]:
    if isinstance(message, ProfiledTransaction):
        return {**_card_row(message), "known": "none", "known_at_us": 0}
    return {
        "kind": "label",
        "transaction": (message.card_id, message.transaction_id),
        "merchant_id": message.merchant_id,
        "event_time_us": message.event_time_us,
        "amount_minor": 0,
        "counts": False,
        "known": message.known,
        "known_at_us": message.known_at_us,
    }
