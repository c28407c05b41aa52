"""The canonical columns of a frame of transactions."""

from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from schemas.fields import DECLARED_FIELDS, Kind

COLUMNS: Final = (
    "transaction_id",
    "event_time",
    "card_id",
    "merchant_id",
    "amount",
    "amount_minor",
    "currency",
    "fraud",
    "fraud_type",
)
"""The canonical columns of a frame of transactions, in order."""

PASSED_ON: Final = tuple(
    field.name for field in DECLARED_FIELDS if field.kind in (Kind.TEXT, Kind.NUMBER, Kind.CLOCK) and not field.required
)
"""Optional fields of the wire contract, texts and numbers, that may follow the canonical columns."""

FRAUD_TYPES: Final = (None, "amount", "merchant", "card")
"""Fraud types by the Handbook's scenario number; 0 is legitimate."""

ObjectArray = npt.NDArray[np.object_]
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


def canonical_frame(
    *,
    transaction_id: ObjectArray,
    event_time_us: IntArray,
    card_id: ObjectArray,
    merchant_id: ObjectArray,
    amount: FloatArray,
    amount_minor: IntArray,
    currency: ObjectArray,
    fraud: npt.NDArray[np.bool_],
    fraud_type: ObjectArray,
) -> pd.DataFrame:
    """Build a frame with ``COLUMNS`` from arrays of one length; ``event_time_us`` counts from 1970-01-01T00:00:00Z.

    Text columns keep the ``object`` type: their strings are shared between rows, and reading them back costs no
    conversion.
    """
    return pd.DataFrame(
        {
            "transaction_id": pd.Series(transaction_id, dtype=object),
            "event_time": pd.Series(event_time_us.astype("datetime64[us]")).dt.tz_localize("UTC"),
            "card_id": pd.Series(card_id, dtype=object),
            "merchant_id": pd.Series(merchant_id, dtype=object),
            "amount": amount,
            "amount_minor": amount_minor,
            "currency": pd.Series(currency, dtype=object),
            "fraud": fraud,
            "fraud_type": pd.Series(fraud_type, dtype=object),
        }
    )
