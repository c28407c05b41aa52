"""Samples that everybody draws alike: a transaction is in or out by its identity alone, for ever."""

from typing import Final

import numpy as np
import xxhash
from numpy.typing import NDArray

AUDIT_SAMPLE: Final = "audit"
NEGATIVE_SAMPLE: Final = "negative"

_MASK: Final = (1 << 64) - 1
_MULTIPLIERS: Final = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_UNIT: Final = 2.0**-53


def sample_positions(identity: NDArray[np.uint64], sample: str) -> NDArray[np.float64]:
    """Where each transaction stands in a sample's order, 0 <= position < 1; shape (n,).

    ``identity`` holds `pipeline.features.identity.transaction_hash` values. The name of the sample is mixed in (by
    the finalizer of SplitMix64: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", 2014), so that
    two samples are independent of each other.
    """
    mixed = identity ^ np.uint64(_salt(sample))
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(_MULTIPLIERS[0])
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(_MULTIPLIERS[1])
    mixed ^= mixed >> np.uint64(31)
    positions: NDArray[np.float64] = (mixed >> np.uint64(11)).astype(np.float64) * _UNIT
    return positions


def sample_position(identity: int, sample: str) -> float:
    """The same for one transaction.

    >>> sample_position(7, "audit") == sample_positions(np.array([7], np.uint64), "audit")[0]
    np.True_
    """
    mixed = identity ^ _salt(sample)
    mixed = ((mixed ^ (mixed >> 30)) * _MULTIPLIERS[0]) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * _MULTIPLIERS[1]) & _MASK
    mixed ^= mixed >> 31
    return (mixed >> 11) * _UNIT


def keep_negative(identity: int, rate: float) -> bool:
    """Whether a legitimate transaction is kept as an example; a share ``rate`` of them is.

    ``identity`` is its `pipeline.features.identity.transaction_hash`. What is kept at one rate is kept at
    every higher one.
    """
    return sample_position(identity, NEGATIVE_SAMPLE) < rate


def keep_negatives(identity: NDArray[np.uint64], rate: float) -> NDArray[np.bool_]:
    """The same for many; shape (n,).

    >>> keep_negatives(np.array([7, 8], np.uint64), 1.0).tolist() == [keep_negative(7, 1.0), keep_negative(8, 1.0)]
    True
    """
    kept: NDArray[np.bool_] = sample_positions(identity, NEGATIVE_SAMPLE) < rate
    return kept


def _salt(sample: str) -> int:
    return xxhash.xxh3_64_intdigest(sample.encode())
