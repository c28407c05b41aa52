"""Texts that are hashed together have the hashes of `xxhash`."""

import numpy as np
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from pipeline.features.xxh3 import LONGEST, hash_joined, hash_pairs, hash_texts, transaction_hash
from tests.reference.identities import transaction_digest


def columns(texts: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.cumsum([0, *map(len, texts)]).astype(np.int32)
    return np.frombuffer(b"".join(texts), np.uint8), offsets


@given(st.lists(st.binary(max_size=2 * LONGEST), max_size=20))
def test_texts_have_the_hashes_of_the_library(texts: list[bytes]) -> None:
    digests = hash_texts(*columns(texts)).astype(">u8").tobytes()
    assert digests == b"".join(map(xxhash.xxh3_128_digest, texts))


def test_texts_of_every_length_have_the_hashes_of_the_library() -> None:
    random = np.random.default_rng(0)
    texts = [random.bytes(length) for length in range(LONGEST + 20)]
    digests = hash_texts(*columns(texts)).astype(">u8").tobytes()
    assert digests == b"".join(map(xxhash.xxh3_128_digest, texts))


@given(st.lists(st.tuples(st.text(max_size=140), st.text(max_size=140)), max_size=20))
def test_pairs_have_the_digests_of_transactions(pairs: list[tuple[str, str]]) -> None:
    first, second = (columns([pair[which].encode() for pair in pairs]) for which in (0, 1))
    digests = hash_pairs(first, second).astype(">u8").tobytes()
    assert digests == b"".join(transaction_digest(*pair) for pair in pairs)


def test_pairs_of_every_length_have_the_digests_of_transactions() -> None:
    pairs = [("é" * count, "x" * more) for count in (0, 1, 9, 10, 99, 100, 256) for more in (0, 1, 40, 137, 138, 256)]
    first, second = (columns([pair[which].encode() for pair in pairs]) for which in (0, 1))
    digests = hash_pairs(first, second).astype(">u8").tobytes()
    assert digests == b"".join(transaction_digest(*pair) for pair in pairs)


@given(st.lists(st.tuples(st.text(max_size=140), st.text(max_size=140)), max_size=20))
def test_pairs_have_the_identities_of_transactions(pairs: list[tuple[str, str]]) -> None:
    first, second = (columns([pair[which].encode() for pair in pairs]) for which in (0, 1))
    assert hash_joined(first, second).tolist() == [transaction_hash(*pair) for pair in pairs]


def test_pairs_of_every_length_have_the_identities_of_transactions() -> None:
    random = np.random.default_rng(0)
    letters = "".join(map(chr, random.integers(32, 127, LONGEST + 20)))
    pairs = [(letters[:split], letters[split:size]) for size in range(len(letters)) for split in {0, size // 3, size}]
    first, second = (columns([pair[which].encode() for pair in pairs]) for which in (0, 1))
    assert hash_joined(first, second).tolist() == [transaction_hash(*pair) for pair in pairs]
