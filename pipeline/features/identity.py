"""Identities of transactions as integers, for tables, sampling and audit."""

from collections.abc import Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray


def transaction_hash(card_id: str, transaction_id: str) -> int:
    """64 bits of a card's transaction, the same on every machine (XXH3 of both identifiers).

    >>> transaction_hash("c1", "t1") == transaction_hash("c1", "t1") != transaction_hash("c1t", "1")
    True
    """
    return xxhash.xxh3_64_intdigest(f"{card_id}\x00{transaction_id}".encode("utf-8", "surrogatepass"))


def transaction_hashes(card_ids: Sequence[str], transaction_ids: Sequence[str]) -> NDArray[np.uint64]:
    """Return `transaction_hash` of n transactions; shape (n,)."""
    return np.fromiter(map(transaction_hash, card_ids, transaction_ids), np.uint64, len(card_ids))
