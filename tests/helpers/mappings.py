"""Mappings of foreign JSON, and the records that they are for."""

from datetime import datetime
from decimal import Decimal
from typing import Any, Final

import msgspec

from schemas.mapping import FieldMapping, read_mapping
from schemas.times import US_PER_MS
from tests.helpers.logs import microseconds

CORE: Final = b"""\
version = "core-1"

[fields]
transaction_id = { path = "payload.after.id" }
event_time = { path = "payload.after.at", unit = "ms" }
card_id = { path = "payload.after.card.token" }
merchant_id = { path = "payload.after.shop" }
amount = { path = "payload.after.cents", minor = true }
currency = { path = "payload.after.ccy" }
transaction_type = { path = "payload.after.kind", values = { sale = "purchase" } }

[attributes]
device_risk = "payload.after.risk"
"""
"""A mapping of changes of rows, as Debezium writes them: epoch milliseconds, minor units, words of its own."""

CENTS: Final = b"""\
version = "cents"

[fields]
transaction_id = { path = "transaction_id" }
event_time = { path = "event_time" }
card_id = { path = "card_id" }
merchant_id = { path = "merchant_id" }
amount = { path = "amount", minor = true }
currency = { path = "currency" }
"""
"""A mapping of records with the contract's own names, whose amounts count minor units."""

PLAIN: Final = (
    CENTS.replace(b'"cents"', b'"plain"').replace(b", minor = true", b"")
    + b"""\
fraud = { path = "fraud" }
fraud_type = { path = "fraud_type" }
"""
)
"""A mapping of a file with the contract's own names, and its truth."""


def core(*changes: tuple[bytes, bytes]) -> FieldMapping:
    """Return the mapping of `foreign` records, with parts of its file replaced."""
    content = CORE
    for old, new in changes:
        assert old in content, old
        content = content.replace(old, new)
    return read_mapping(content)


def foreign(stated: bytes | dict[str, Any], digits: int = 2) -> bytes:
    """Return a transaction of the contract as the producer of `CORE` writes it, its time cut to milliseconds.

    Args:
        stated: JSON of the transaction, or its fields.
        digits: Decimals of its currency.
    """
    fields = msgspec.json.decode(stated) if isinstance(stated, bytes) else stated
    at_ms = microseconds(datetime.fromisoformat(fields["event_time"])) // US_PER_MS
    after = {
        "id": int(fields["transaction_id"]) if fields["transaction_id"].isdigit() else fields["transaction_id"],
        "at": at_ms,
        "card": {"token": fields["card_id"]},
        "shop": fields["merchant_id"],
        "cents": int(Decimal(str(fields["amount"])).scaleb(digits)),
        "ccy": fields["currency"],
        "risk": fields.get("attributes", {}).get("device_risk"),
        "kind": "sale" if fields.get("transaction_type", "purchase") == "purchase" else fields["transaction_type"],
    }
    return msgspec.json.encode({"payload": {"op": "c", "before": None, "after": after}})
