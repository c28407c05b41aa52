"""The declaration of the numbers that producers state of a transaction, beyond the fields of the wire contract."""

import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

_NAME: Final = re.compile("[A-Za-z0-9_]{1,64}")


class Attribute(NamedTuple):
    """A number in the ``attributes`` of a transaction that is a feature."""

    name: str
    """Its key in ``attributes``: letters, digits and ``_``. The feature is ``attribute_`` and this name."""
    meaning: str
    """In a few words for people."""


DECLARED_ATTRIBUTES: Final[tuple[Attribute, ...]] = ()
"""Declare yours here, such as ``Attribute("device_risk", "risk score of the device")``.

Every block, model and export holds them, so that all processes of a deployment need the same declaration.
"""


def attribute_features() -> tuple[str, ...]:
    """Return the names of the features that the declared attributes are.

    Raises:
        ValueError: A name is declared twice, or has other characters than letters, digits and ``_``.
    """
    names = [attribute.name for attribute in DECLARED_ATTRIBUTES]
    wrong = [name for number, name in enumerate(names) if not _NAME.fullmatch(name) or name in names[:number]]
    if wrong:
        raise ValueError(
            f"DECLARED_ATTRIBUTES in pipeline/features/attributes.py holds {wrong[0]!r}: give each attribute a name of "
            "its own, of at most 64 ASCII letters, digits and _"
        )
    return tuple(f"attribute_{name}" for name in names)


def attribute_values(rows: Sequence[Mapping[str, str | float | None] | None]) -> NDArray[np.float64] | None:
    """Return the declared attributes of n transactions.

    Args:
        rows: The ``attributes`` of each; None for none.

    Returns:
        Shape (n, len(DECLARED_ATTRIBUTES)), NaN for one that is absent, null or text; None where none is declared.
    """
    if not DECLARED_ATTRIBUTES:
        return None
    values = np.full((len(rows), len(DECLARED_ATTRIBUTES)), np.nan)
    for row, attributes in zip(values, rows, strict=True):
        for column, attribute in enumerate(DECLARED_ATTRIBUTES):
            if isinstance(value := (attributes or {}).get(attribute.name), float):
                row[column] = value
    return values


decode_attributes: Final = msgspec.json.Decoder(dict[str, str | float | None]).decode
"""Decode the JSON of ``attributes``, as the decoder of transactions does."""
