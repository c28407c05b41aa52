"""Identities as integers: of a transaction for tables, sampling and audit, of cards and merchants for the windows."""

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


def entity_keys(names: Sequence[str]) -> NDArray[np.int64]:
    """128 bits of each name as two words, the same on every machine (XXH3); shape (n, 2).

    >>> entity_keys(["card-1", "card-2", "card-1"]).tolist()[0] == entity_keys(["card-1"]).tolist()[0]
    True
    """
    return text_keys([name.encode("utf-8", "surrogatepass") for name in names])


def text_keys(names: Sequence[bytes]) -> NDArray[np.int64]:
    """Return `entity_keys` of names in UTF-8."""
    packed = bytearray().join([*map(xxhash.xxh3_128_digest, names)])
    return np.frombuffer(packed, "<i8").astype(np.int64, copy=False).reshape(-1, 2)
