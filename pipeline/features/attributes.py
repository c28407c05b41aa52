"""The declared fields among the ``attributes`` of transactions: numbers, which are features, and texts."""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.features.catalogue import ACTIVE, ATTRIBUTES


class AttributeColumns(NamedTuple):
    """The declared attributes of n transactions."""

    numbers: NDArray[np.float64] | None
    """Shape (n, len(ATTRIBUTES)), NaN for one that is absent, null or text; None where none is declared."""
    texts: dict[str, pa.Array]
    """By name, null for one that is absent, null or a number."""


Attributes = Mapping[str, str | float | None]
COLUMNS: Final = {f"attribute_{name}": name for name in ACTIVE.declaration.fields}
"""Names of declared fields by those of their columns in files and exports."""
READ: Final = bool(ATTRIBUTES) or bool(ACTIVE.texts)
"""True if any is declared."""


def attribute_columns(rows: Sequence[Attributes | None]) -> AttributeColumns:
    """Return the declared attributes of n transactions; None for one without attributes."""
    numbers = None
    if ATTRIBUTES:
        numbers = np.full((len(rows), len(ATTRIBUTES)), np.nan)
        for row, attributes in zip(numbers, rows, strict=True):
            for column, name in enumerate(ATTRIBUTES):
                if isinstance(value := (attributes or {}).get(name), float):
                    row[column] = value
    return AttributeColumns(
        numbers, {name: pa.array([_text(row, name) for row in rows], pa.string()) for name in ACTIVE.texts}
    )


def _text(attributes: Attributes | None, name: str) -> str | None:
    value = (attributes or {}).get(name)
    return value if isinstance(value, str) else None


def no_attributes(n: int) -> AttributeColumns:
    """Return the columns of n transactions without attributes."""
    return attribute_columns([None] * n)


decode_attributes: Final = msgspec.json.Decoder(dict[str, str | float | None]).decode
"""Decode the JSON of ``attributes``, as the decoder of transactions does."""
