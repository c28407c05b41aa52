"""The log of a merchants' partition as columns: transactions, and labels in the order in which they became known."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.features.kernel import MerchantWindows


class MerchantLog(NamedTuple):
    """Records in log order; every column has n rows, as `MerchantWindows.profile` takes them."""

    kinds: NDArray[np.uint8]
    """0 for a transaction, 1 for a label."""
    merchants: NDArray[np.int64]
    """Shape (n, 2): `name_keys`."""
    identities: NDArray[np.uint64]
    """`transaction_hash` of what a label is about; 0 for a transaction."""
    event_time_us: NDArray[np.int64]
    amount_base_minor: NDArray[np.int64]
    counts: NDArray[np.bool_]
    outliers: NDArray[np.bool_]
    """True for a transaction whose amount is an outlier for its card."""
    known: NDArray[np.int8]
    """Known value of a label: 1 for fraud, 0 for legitimate, 2 for none."""
    known_at_us: NDArray[np.int64]

    def take(self, rows: slice | NDArray[np.intp]) -> "MerchantLog":
        """Return some records."""
        columns: list[NDArray[Any]] = [column[rows] for column in self]
        return MerchantLog(*columns)

    def profile(self, windows: MerchantWindows) -> NDArray[np.float64]:
        """Let the records enter the windows; return features, shape (n, len(MERCHANT_FEATURES)), NaN for labels."""
        return windows.profile(*self)
