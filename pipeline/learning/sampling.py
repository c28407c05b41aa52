"""Samples that everybody draws alike: a transaction is in or out by its identity alone, for ever."""

import hashlib
from typing import Final

import numpy as np
import xxhash
from numpy.typing import NDArray

AUDIT_SAMPLE: Final = "audit"
NEGATIVE_SAMPLE: Final = "negative"
TRAINING_SAMPLE: Final = "training"

_MASK: Final = (1 << 64) - 1
_MULTIPLIERS: Final = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_UNIT: Final = 2.0**-53


def sample_positions(identity: NDArray[np.uint64], sample: str) -> NDArray[np.float64]:
    """Return each transaction's position in a sample's order, 0 <= position < 1; shape (n,).

    ``identity`` holds `pipeline.features.xxh3.transaction_hash` values. The name of the sample is mixed in (by
    the finalizer of SplitMix64: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", 2014), so that
    two samples are independent of each other.
    """
    return _positions(_mixed(identity ^ np.uint64(_salt(sample))))


def keyed_positions(identity: NDArray[np.uint64], sample: str, key: bytes) -> NDArray[np.float64]:
    """Return the order of a sample that only holders of a key can compute; as `sample_positions` otherwise.

    The finalizer is applied twice, each time to the exclusive or with 64 bits that BLAKE2b derives from the key and the
    name of the sample. It costs nanoseconds a row, and is no cryptographic proof against somebody who sees which of
    very many transactions were selected.

    Args:
        identity: `pipeline.features.xxh3.transaction_hash` values; shape (n,).
        sample: Name of the sample.
        key: The secret, of any length.

    Returns:
        Shape (n,), 0 <= position < 1.
    """
    digest = hashlib.blake2b(sample.encode() + b"\0" + key, digest_size=16).digest()
    mixed = identity
    for salt in np.frombuffer(digest, "<u8"):
        mixed = _mixed(mixed ^ salt)
    return _positions(mixed)


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
    """Return True if a legitimate transaction is kept as an example; a share ``rate`` of them is.

    ``identity`` is its `pipeline.features.xxh3.transaction_hash`. What is kept at one rate is kept at
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


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mixed = (values ^ (values >> np.uint64(30))) * np.uint64(_MULTIPLIERS[0])
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(_MULTIPLIERS[1])
    return mixed ^ (mixed >> np.uint64(31))


def _positions(mixed: NDArray[np.uint64]) -> NDArray[np.float64]:
    positions: NDArray[np.float64] = (mixed >> np.uint64(11)).astype(np.float64) * _UNIT
    return positions


def _salt(sample: str) -> int:
    return xxhash.xxh3_64_intdigest(sample.encode())
