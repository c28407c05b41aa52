"""Features as the slow reference computes them from logs alone, and the comparison with what was served."""

import math
import sys
import tomllib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd

from pipeline.engine.scores.block_messages import read_messages
from pipeline.features.catalogue import ACTIVE, FEATURES, WINDOW_FEATURES
from schemas.messages import (
    DecisionFeatures,
    ProfiledLabel,
    ProfiledTransaction,
    Progress,
    RecordPosition,
    Transaction,
)
from schemas.records import Record
from tests.helpers.logs import EPOCH, microseconds
from tests.reference.declared import features_of
from tests.reference.features import card_features, merchant_features

Key = tuple[str, str]
_PACKAGED_FILE = Path(__file__).parents[2] / "pipeline" / "data" / "features.toml"
PACKAGED: dict[str, Any] = {
    "features": [
        table
        for table in tomllib.loads(_PACKAGED_FILE.read_text(encoding="utf-8"))["features"]
        if "where" in table or table["aggregate"] == "usual_hour"
    ]
}
"""Windows that the packaged set declares: all that is not built in."""
CARRIED = frozenset(feature.name for feature in ACTIVE.carried)
"""Inputs of merchants' windows, which are no features of the reference."""
COUNTING = ("purchase", "cash")
READS = ("transactions", "rerouted")

_decode_progress = msgspec.json.Decoder(Progress).decode
decode_transaction = msgspec.json.Decoder(Transaction).decode


def expected_features(profiled: Iterable[Record], progress: Iterable[Record] = ()) -> dict[Key, dict[str, float]]:
    """Features of every transaction in ``profiled``, by (card, transaction).

    Takes from the messages what the producer wrote and the order of the logs, nothing that the kernel computed.
    ``progress`` tells in which order the card agent read its topics; without it, all is taken to be read in order of
    offsets, which is right where nothing was rerouted. Amounts must be in euros.
    """
    in_log_order = sorted(profiled, key=lambda record: (record.partition, record.offset))
    messages = [(record.partition, message) for record in in_log_order for message in read_messages(record.value)]
    transactions = [message for _, message in messages if isinstance(message, ProfiledTransaction)]
    order = _ReadingOrder(progress)
    features: dict[Key, dict[str, float]] = {}

    def compute(rows: list[dict[str, object]], reference: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
        for row, values in zip(rows, reference(pd.DataFrame(rows)).to_dict("records"), strict=True):
            if row["kind"] == "transaction":
                features.setdefault(row["transaction"], {}).update(values)  # type: ignore[arg-type,call-overload]

    in_reading_order = sorted(transactions, key=lambda message: order.rank(message.read or message.source))
    for _, of_partition in groupby(in_reading_order, lambda message: (message.read or message.source).partition):
        stated = [transaction_row(decode_transaction(message.transaction)) for message in of_partition]
        compute(stated, card_features)
        compute(stated, lambda frame: windows_of("card", frame))
    for _, of_log in groupby(messages, lambda item: item[0]):
        rows = [merchant_row(message) for _, message in of_log]
        compute(rows, merchant_features)
        # Filters of merchants read features of the card.
        bought = [{**row, **features[row["transaction"]]} for row in rows if row["kind"] == "transaction"]  # type: ignore[index]
        compute(bought, lambda frame: windows_of("merchant", frame))
    return features


def windows_of(entity: str, frame: pd.DataFrame) -> pd.DataFrame:
    """Return the windows that the packaged set declares of an entity, of rows of one partition.

    Of several where ``frame`` has ``partition_newest_us``.
    """
    found = features_of(entity, PACKAGED, frame.assign(**{f"{entity}_partition": 0}))
    return found[[name for name in found if name in WINDOW_FEATURES]]


class _ReadingOrder:
    """The place of each record of the card agent's inputs in the order in which they were read."""

    def __init__(self, progress: Iterable[Record]) -> None:
        self._batches: dict[tuple[int, str], list[tuple[int, int]]] = {}
        for number, record in enumerate(sorted(progress, key=lambda record: (record.partition, record.offset))):
            marker = _decode_progress(record.value or b"")
            if marker.agent == "card":
                for topic, end in marker.ends.items():
                    self._batches.setdefault((record.partition, topic), []).append((end, number))

    def rank(self, place: RecordPosition) -> tuple[int, int, int, int]:
        """(partition, batch, topic, offset)."""
        batches = self._batches.get((place.partition, place.topic), [])
        at = bisect_right(batches, (place.offset, sys.maxsize))
        batch = batches[at][1] if at < len(batches) else 0
        return place.partition, batch, READS.index(place.topic), place.offset


def differences(rows: Iterable[DecisionFeatures], expected: Mapping[Key, Mapping[str, float]]) -> list[str]:
    """Differences of rows of ``features`` from ``expected``, in words; empty when all agree."""
    found = []
    for decision in rows:
        key = (decision.card_id, decision.transaction_id)
        if tuple(decision.features) != FEATURES:
            found.append(f"{key} has other features than the kernel")
        for name, served in decision.features.items():
            if name in CARRIED:
                continue
            right = expected[key][name]
            same = math.isnan(right) if served is None else math.isclose(served, right, rel_tol=1e-9, abs_tol=1e-9)
            if not same:
                found.append(f"{key} {name}: served {served}, expected {right}")
    return found


def transaction_row(stated: Transaction) -> dict[str, object]:
    """A producer's transaction in euros, in the columns of the reference."""
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


def merchant_row(message: ProfiledTransaction | ProfiledLabel) -> dict[str, object]:
    """The card agent's output, in the columns of the reference: a transaction is what its producer's bytes say."""
    if isinstance(message, ProfiledTransaction):
        stated = transaction_row(decode_transaction(message.transaction))
        return {**stated, "outlier": message.outlier, "known": "none", "known_at_us": 0}
    return {
        "kind": "label",
        "transaction": (message.card_id, message.transaction_id),
        "card_id": message.card_id,
        "merchant_id": message.merchant_id,
        "event_time_us": message.event_time_us,
        "amount_minor": 0,
        "counts": False,
        "outlier": False,
        "known": message.known,
        "known_at_us": message.known_at_us,
    }
