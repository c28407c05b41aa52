"""Amounts without decimals, of which many in a row show that cents are taken for euros."""

from collections import Counter
from collections.abc import Callable
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

LEAST_AMOUNTS: Final = 1_000
"""Whole amounts of a currency from which on they are suspicious: where one amount in a hundred has decimals, so many
without any come by chance once in 20,000 times."""
MOST_OF_A_BATCH: Final = 256
"""Amounts of a batch that are looked at, so that large batches cost no more than small ones."""

AmountCounts = Counter[tuple[str, bool]]
"""Numbers of amounts by currency, and by whether they have decimals; of currencies with a minor unit alone."""


def amount_counts(currency: pa.Array, amount_minor: NDArray[np.int64], digits: Callable[[str], int]) -> AmountCounts:
    """Count amounts with and without decimals.

    Args:
        currency: Codes of n amounts, none null.
        amount_minor: Shape (n,), whole minor units.
        digits: Returns the decimals of a currency.

    >>> amount_counts(pa.array(["EUR", "EUR", "JPY"]), np.array([1234, 1200, 7]), {"EUR": 2, "JPY": 0}.__getitem__)
    Counter({('EUR', False): 1, ('EUR', True): 1})
    """
    names = currency.to_pylist()
    units = {name: 10 ** digits(name) for name in {*names}}
    return Counter(
        (name, minor % units[name] != 0)
        for name, minor in zip(names, amount_minor.tolist(), strict=True)
        if units[name] > 1
    )


def suspicious(counts: AmountCounts) -> list[str]:
    """Return the currencies of which there are many amounts and none has decimals."""
    return [
        currency
        for (currency, has_decimals), count in counts.items()
        if not has_decimals and count >= LEAST_AMOUNTS and not counts[currency, True]
    ]


def suspicion(currency: str, amounts: int) -> str:
    """Return the sentence that warns of a suspicious currency, whose ``amounts`` were looked at."""
    return (
        f"none of {amounts:,} amounts in {currency} has decimals. If they are cents, write them in the major unit "
        "(12.34 in place of 1234). If whole amounts are usual here, nothing is wrong"
    )
