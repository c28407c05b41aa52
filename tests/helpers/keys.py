"""Keys of cards and merchants, by their names."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.engine.records.columns import name_keys


def keys(names: Sequence[str]) -> NDArray[np.int64]:
    """`name_keys` of Python's own strings; shape (n, 2)."""
    return name_keys(pa.array(names, pa.string()))
