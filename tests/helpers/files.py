"""Files of transactions as one frame."""

from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.history.files import ColumnMapping
from pipeline.history.frames import read_transactions


def load_transactions(path: Path, mapping: ColumnMapping | None = None, **more: Any) -> pd.DataFrame:
    """Return a whole file in the order of event time; ``more`` as of `read_transactions`."""
    return pd.concat(list(read_transactions(path, mapping, sort=True, **more)), ignore_index=True)
