"""What feedback keeps of a decision: as much as an example takes over from it, a third of its bytes."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from pipeline.engine.json_arrays import ObjectValues
from pipeline.features.catalogue import FEATURES
from schemas.messages import LogPosition, Timestamp, Versions


class Filed(msgspec.Struct, frozen=True, gc=False):
    """A decision as it is read to be kept; what nobody asks for before an example is told stays as it was written."""

    transaction_id: str
    card_id: str
    merchant_id: str
    event_time: Timestamp
    amount_base: msgspec.Raw
    features: msgspec.Raw
    logit: msgspec.Raw
    score: msgspec.Raw
    versions: msgspec.Raw
    log: msgspec.Raw


class Kept(msgspec.Struct, frozen=True, array_like=True):
    """What an example takes over from a decision."""

    transaction_id: str
    card_id: str
    merchant_id: str
    event_time: Timestamp
    amount_base: float
    features: dict[str, float | None] | list[float | None]
    """By name; or without, where the names are `FEATURES` in their order."""
    logit: float
    score: float
    versions: Versions
    log: LogPosition

    def named_features(self) -> dict[str, float | None]:
        """The features by name."""
        features = self.features
        return features if isinstance(features, dict) else dict(zip(FEATURES, features, strict=True))


_encode = msgspec.json.Encoder().encode
read_decision: Final = msgspec.json.Decoder(Filed).decode
"""Raises msgspec.MsgspecError for what is not a decision."""
unpack_decision: Final = msgspec.json.Decoder(Kept).decode
"""Of what `DecisionPacker.pack` gave."""


class DecisionPacker:
    """Makes of decisions what the store keeps: JSON arrays of the fields of `Kept`."""

    def __init__(self) -> None:
        self._values = ObjectValues(FEATURES)

    def pack(self, decisions: Sequence[Filed]) -> list[bytes]:
        """One for each of ``decisions``; what has the kernel's features keeps no names of them."""
        values = self._values.arrays([one.features for one in decisions])
        return [_encode(_fields(one, features)) for one, features in zip(decisions, values, strict=True)]


def _fields(one: Filed, features: msgspec.Raw) -> tuple[Any, ...]:
    return (
        one.transaction_id,
        one.card_id,
        one.merchant_id,
        one.event_time,
        one.amount_base,
        features,
        one.logit,
        one.score,
        one.versions,
        one.log,
    )
