"""The numbers that producers state of a transaction beyond the fields of the wire contract, and that are features.

A program declares them before it imports anything that reads them: `pipeline` itself does, from the file that
``FRAUD_PIPELINE_FEATURES_FILE`` names (`pipeline.settings.features_file`).
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray


class Attribute(NamedTuple):
    """A number in the ``attributes`` of a transaction that is a feature."""

    name: str
    """Its key in ``attributes``: letters, digits and ``_``. The feature is ``attribute_`` and this name."""
    meaning: str
    """In a few words for people."""


DECLARED_ATTRIBUTES: tuple[Attribute, ...] = ()
"""Every block, model and export holds them, so that all processes of a deployment need the same declaration."""


def declare(attributes: Sequence[Attribute]) -> None:
    """Declare the attributes of this process, whose names are checked already.

    Raises:
        RuntimeError: The catalogue of features, which holds them, was imported before.
    """
    global DECLARED_ATTRIBUTES  # noqa: PLW0603 (one declaration a process)
    if "pipeline.features.catalogue" in sys.modules:
        raise RuntimeError("features are declared before pipeline.features.catalogue is imported")
    DECLARED_ATTRIBUTES = tuple(attributes)


def attribute_features() -> tuple[str, ...]:
    """Return the names of the features that the declared attributes are."""
    return tuple(f"attribute_{attribute.name}" for attribute in DECLARED_ATTRIBUTES)


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
