"""The digest of a transaction, one at a time: the meaning of the columns that the engine hashes."""

import xxhash


def transaction_digest(card_id: str, transaction_id: str) -> bytes:
    """Return what stands for a transaction in the store's keys."""
    return xxhash.xxh3_128_digest(f"{len(card_id)} {card_id}{transaction_id}".encode("utf-8", "surrogatepass"))
