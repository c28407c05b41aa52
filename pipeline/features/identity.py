"""Identities of transactions as integers, for tables, sampling and audit."""

import xxhash


def transaction_hash(card_id: str, transaction_id: str) -> int:
    """64 bits of a card's transaction, the same on every machine (XXH3 of both identifiers).

    `pipeline.engine.records.columns.identities` gives those of many.

    >>> transaction_hash("c1", "t1") == transaction_hash("c1", "t1") != transaction_hash("c1t", "1")
    True
    """
    return xxhash.xxh3_64_intdigest(f"{card_id}\x00{transaction_id}".encode("utf-8", "surrogatepass"))
