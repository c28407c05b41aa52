"""The declaration of the numbers that producers state of a transaction, beyond the fields of the wire contract."""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Attribute(NamedTuple):
    """A number in the ``attributes`` of a transaction that is a feature."""

    name: str
    """Its key in ``attributes``: letters, digits and ``_``. The feature is ``attribute_`` and this name."""
    meaning: str
    """In a few words for people."""


ATTRIBUTES: Final[tuple[Attribute, ...]] = ()
"""Declare yours here, such as ``Attribute("device_risk", "risk score of the device")``.

Every block, model and export holds them, so that all processes of a deployment need the same declaration.
"""


def attribute_values(given: Sequence[Mapping[str, str | float | None] | None]) -> NDArray[np.float64] | None:
    """Return the declared attributes of n transactions.

    Args:
        given: The ``attributes`` of each; None for none.

    Returns:
        Shape (n, len(ATTRIBUTES)), NaN for one that is absent, null or text; None where none is declared.
    """
    if not ATTRIBUTES:
        return None
    values = np.full((len(given), len(ATTRIBUTES)), np.nan)
    for row, attributes in zip(values, given, strict=True):
        for column, attribute in enumerate(ATTRIBUTES):
            if isinstance(value := (attributes or {}).get(attribute.name), float):
                row[column] = value
    return values
