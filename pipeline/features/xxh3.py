"""XXH3 with 128 or 64 bits of many texts at once, after its specification (github.com/Cyan4973/xxHash).

Compiled code hashes texts of up to 240 bytes, which identifiers seldom exceed. `xxhash` hashes the longer ones.
"""

from typing import Any, Final

import numpy as np
import xxhash
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from pipeline.features.compiled import compiled, inlined, wide_product, word_at

IntArray = NDArray[np.integer[Any]]
Texts = tuple[NDArray[np.uint8], IntArray]

LONGEST: Final = 240
"""Bytes of the longest text that compiled code hashes."""
_SECRET: Final = np.frombuffer(
    bytes.fromhex(
        "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221b8084674f743"
        "248ee03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8a8fa763fe39c343ff9dcbbc7"
        "c70b4f1d8a51e04bcdb45931c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e2b16"
        "be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
    ),
    np.uint8,
)
_PRIME32_2: Final = np.uint64(0x85EBCA77)
_PRIME64_1: Final = np.uint64(0x9E3779B185EBCA87)
_PRIME64_2: Final = np.uint64(0xC2B2AE3D27D4EB4F)
_PRIME64_3: Final = np.uint64(0x165667B19E3779F9)
_PRIME64_4: Final = np.uint64(0x85EBCA77C2B2AE63)
_MIX_1: Final = np.uint64(0x165667919E3779F9)
_MIX_2: Final = np.uint64(0x9FB21C651E98DF25)
_LOW_32: Final = np.uint64(0xFFFFFFFF)
_NONE: Final = np.uint64(0)
_TEN: Final = 10
_CONTINUES: Final = 0x80
_TOP_BITS: Final = 0xC0
_SPACE, _ZERO = b" 0"


def hash_texts(data: NDArray[np.uint8], offsets: IntArray) -> NDArray[np.uint64]:
    """Hash n texts: text i lies in ``data`` from ``offsets[i]`` to ``offsets[i + 1]``.

    Returns:
        Shape (n, 2): the high and the low 64 bits of each hash.
    """
    return hash_spans(data, offsets[:-1], offsets[1:])


def hash_spans(data: NDArray[np.uint8], first: IntArray, end: IntArray) -> NDArray[np.uint64]:
    """Hash n texts, as `hash_texts`: text i lies in ``data`` from ``first[i]`` to ``end[i]``.

    Args:
        data: Bytes of all texts, shape (b,).
        first: Shape (n,). Texts may lie in any order, and overlap.
        end: Shape (n,): position behind each text's last byte.

    Returns:
        Shape (n, 2): the high and the low 64 bits of each hash.
    """
    hashes = np.empty((len(first), 2), np.uint64)
    if _hash_spans(data, first, end, _SECRET, hashes):
        for row in np.flatnonzero(end - first > LONGEST).tolist():
            _store(hashes, row, data[first[row] : end[row]].tobytes())
    return hashes


def hash_pairs(first: Texts, second: Texts) -> NDArray[np.uint64]:
    """Hash n pairs of texts: the number of characters of the first, a space, the first, the second.

    Args:
        first: (data, offsets) of n texts, as of `hash_texts`.
        second: The same.

    Returns:
        Shape (n, 2): the high and the low 64 bits of each hash.
    """
    return _pairs(first, second, counted=True)


def hash_joined(first: Texts, second: Texts) -> NDArray[np.uint64]:
    """Hash n pairs of texts, given as to `hash_pairs`, to 64 bits: the first, a byte of 0, the second; shape (n,)."""
    return np.ascontiguousarray(_pairs(first, second, counted=False)[:, 1])


def transaction_hash(card_id: str, transaction_id: str) -> int:
    """64 bits of a card's transaction, the same on every machine, as `hash_joined` gives those of many.

    >>> transaction_hash("c1", "t1") == transaction_hash("c1", "t1") != transaction_hash("c1t", "1")
    True
    """
    return xxhash.xxh3_64_intdigest(f"{card_id}\x00{transaction_id}".encode("utf-8", "surrogatepass"))


def _pairs(first: Texts, second: Texts, *, counted: bool) -> NDArray[np.uint64]:
    hashes = np.empty((len(first[1]) - 1, 2), np.uint64)
    if _hash_pairs(*first, *second, counted, _SECRET, np.empty(LONGEST, np.uint8), hashes):
        for row in np.flatnonzero(np.diff(first[1]) + np.diff(second[1]) > LONGEST - _MOST_HEAD_BYTES).tolist():
            names = [data[ends[row] : ends[row + 1]].tobytes() for data, ends in (first, second)]
            if counted:
                head = b"%d " % len(names[0].decode("utf-8", "surrogatepass"))
                _store(hashes, row, head + b"".join(names))
            else:
                hashes[row, 1] = xxhash.xxh3_64_intdigest(b"\0".join(names))
    return hashes


_MOST_HEAD_BYTES: Final = 4
"""Bytes before a first text of up to 240 bytes: three digits and the space."""


def _store(hashes: NDArray[np.uint64], row: int, text: bytes) -> None:
    hashes[row] = np.frombuffer(xxhash.xxh3_128_digest(text), ">u8")


@intrinsic  # type: ignore[untyped-decorator]
def _swapped(_typing: Any, _word: Any) -> Any:
    """A word with its bytes in reverse."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bswap(arguments[0])

    return types.uint64(types.uint64), generate


@compiled
def _hash_spans(data: Any, first: Any, end: Any, secret: Any, hashes: Any) -> bool:
    """Return whether there are texts that are too long, which are left out."""
    longer = False
    for row in range(len(hashes)):
        size = end[row] - first[row]
        if size > LONGEST:
            longer = True
        else:
            hashes[row, 0], hashes[row, 1] = _hash(data, np.int64(first[row]), np.int64(size), secret)
    return longer


@compiled
def _hash_pairs(
    data: Any, offsets: Any, other: Any, other_offsets: Any, counted: Any, secret: Any, text: Any, hashes: Any
) -> bool:
    """Hash pairs as `hash_pairs` does or, not ``counted``, as `hash_joined` to the low words.

    Returns True if some are too long and left out. ``text`` has room for `LONGEST` bytes.
    """
    longer = False
    for row in range(len(hashes)):
        first, end = offsets[row], offsets[row + 1]
        other_first, other_end = other_offsets[row], other_offsets[row + 1]
        if (end - first) + (other_end - other_first) > LONGEST - _MOST_HEAD_BYTES:
            longer = True
            continue
        at = 0
        if counted:
            characters, limit = 0, _TEN
            for position in range(first, end):
                characters += (data[position] & _TOP_BITS) != _CONTINUES
            at = 1
            while characters >= limit:
                at += 1
                limit *= _TEN
            for position in range(at - 1, -1, -1):
                text[position] = _ZERO + characters % _TEN
                characters //= _TEN
            text[at] = _SPACE
            at += 1
        for position in range(first, end):
            text[at] = data[position]
            at += 1
        if not counted:
            text[at] = 0
            at += 1
        for position in range(other_first, other_end):
            text[at] = other[position]
            at += 1
        if counted:
            hashes[row, 0], hashes[row, 1] = _hash(text, np.int64(0), np.int64(at), secret)
        else:
            hashes[row, 1] = _hash_64(text, np.int64(at), secret)
    return longer


@compiled
def _hash_64(text: Any, size: Any, secret: Any) -> Any:
    """64 bits of the first ``size`` bytes, of which there is at least one."""
    if size > 16:
        return _long_64(text, size, secret)
    if size > 8:
        low = word_at(text, 0) ^ (word_at(secret, 24) ^ word_at(secret, 32))
        high = word_at(text, size - 8) ^ (word_at(secret, 40) ^ word_at(secret, 48))
        upper, lower = wide_product(low, high)
        return _avalanche(np.uint64(size) + _swapped(low) + high + (upper ^ lower))
    if size >= 4:
        word = _half(text, size - 4) + (_half(text, 0) << np.uint64(32))
        word ^= word_at(secret, 8) ^ word_at(secret, 16)
        word ^= _rotated(word, 49) ^ _rotated(word, 24)
        word *= _MIX_2
        word = (word ^ ((word >> np.uint64(35)) + np.uint64(size))) * _MIX_2
        return word ^ (word >> np.uint64(28))
    _, low = _one_to_three(text, np.int64(0), size, secret)
    return low


@inlined
def _rotated(word: Any, bits: Any) -> Any:
    return (word << np.uint64(bits)) | (word >> np.uint64(64 - bits))


@inlined
def _long_64(text: Any, size: Any, secret: Any) -> Any:
    total = np.uint64(size) * _PRIME64_1
    if size <= 128:
        for step in range((size - 1) // 32, -1, -1):
            total += _fold(text, 16 * step, secret, 32 * step)
            total += _fold(text, size - 16 * (step + 1), secret, 32 * step + 16)
        return _avalanche(total)
    for position in range(0, 128, 16):
        total += _fold(text, position, secret, position)
    total = _avalanche(total)
    for position in range(128, size // 16 * 16, 16):
        total += _fold(text, position, secret, position - 125)
    return _avalanche(total + _fold(text, size - 16, secret, 119))


@compiled
def _hash(text: Any, at: Any, size: Any, secret: Any) -> Any:
    """(high, low) of ``size`` bytes from ``at`` on."""
    if size > 16:
        return _long(text, at, size, secret)
    if size > 8:
        return _nine_to_sixteen(text, at, size, secret)
    if size >= 4:
        return _four_to_eight(text, at, size, secret)
    if size > 0:
        return _one_to_three(text, at, size, secret)
    low = _avalanche_64(word_at(secret, 64) ^ word_at(secret, 72))
    return _avalanche_64(word_at(secret, 80) ^ word_at(secret, 88)), low


@inlined
def _half(text: Any, at: Any) -> Any:
    """Four bytes as a little-endian number."""
    return (
        np.uint64(text[at])
        | np.uint64(text[at + 1]) << np.uint64(8)
        | np.uint64(text[at + 2]) << np.uint64(16)
        | np.uint64(text[at + 3]) << np.uint64(24)
    )


@inlined
def _avalanche_64(word: Any) -> Any:
    word = (word ^ (word >> np.uint64(33))) * _PRIME64_2
    word = (word ^ (word >> np.uint64(29))) * _PRIME64_3
    return word ^ (word >> np.uint64(32))


@inlined
def _avalanche(word: Any) -> Any:
    word = (word ^ (word >> np.uint64(37))) * _MIX_1
    return word ^ (word >> np.uint64(32))


@inlined
def _one_to_three(text: Any, at: Any, size: Any, secret: Any) -> Any:
    combined = (
        np.uint64(text[at]) << np.uint64(16)
        | np.uint64(text[at + (size >> 1)]) << np.uint64(24)
        | np.uint64(text[at + size - 1])
        | np.uint64(size) << np.uint64(8)
    )
    swapped = _swapped(combined) >> np.uint64(32)
    turned = ((swapped << np.uint64(13)) | (swapped >> np.uint64(19))) & _LOW_32
    low = _avalanche_64(combined ^ (_half(secret, 0) ^ _half(secret, 4)))
    return _avalanche_64(turned ^ (_half(secret, 8) ^ _half(secret, 12))), low


@inlined
def _four_to_eight(text: Any, at: Any, size: Any, secret: Any) -> Any:
    word = _half(text, at) + (_half(text, at + size - 4) << np.uint64(32))
    keyed = word ^ (word_at(secret, 16) ^ word_at(secret, 24))
    high, low = wide_product(keyed, _PRIME64_1 + (np.uint64(size) << np.uint64(2)))
    high += low << np.uint64(1)
    low ^= high >> np.uint64(3)
    low = (low ^ (low >> np.uint64(35))) * _MIX_2
    return _avalanche(high), low ^ (low >> np.uint64(28))


@inlined
def _nine_to_sixteen(text: Any, at: Any, size: Any, secret: Any) -> Any:
    first, last = word_at(text, at), word_at(text, at + size - 8)
    flip = word_at(secret, 32) ^ word_at(secret, 40)
    high, low = wide_product(first ^ last ^ flip, _PRIME64_1)
    low += np.uint64(size - 1) << np.uint64(54)
    last ^= word_at(secret, 48) ^ word_at(secret, 56)
    high += last + (last & _LOW_32) * (_PRIME32_2 - np.uint64(1))
    low ^= _swapped(high)
    upper, lower = wide_product(low, _PRIME64_2)
    return _avalanche(upper + high * _PRIME64_2), _avalanche(lower)


@inlined
def _fold(text: Any, at: Any, secret: Any, key: Any) -> Any:
    high, low = wide_product(word_at(text, at) ^ word_at(secret, key), word_at(text, at + 8) ^ word_at(secret, key + 8))
    return high ^ low


@inlined
def _mix(low: Any, high: Any, text: Any, first: Any, second: Any, secret: Any, key: Any) -> Any:
    low = (low + _fold(text, first, secret, key)) ^ (word_at(text, second) + word_at(text, second + 8))
    high = (high + _fold(text, second, secret, key + 16)) ^ (word_at(text, first) + word_at(text, first + 8))
    return low, high


@inlined
def _long(text: Any, at: Any, size: Any, secret: Any) -> Any:
    end = at + size
    low, high = np.uint64(size) * _PRIME64_1, _NONE
    if size <= 128:
        for step in range((size - 1) // 32, -1, -1):
            low, high = _mix(low, high, text, at + 16 * step, end - 16 * (step + 1), secret, 32 * step)
    else:
        for position in range(0, 128, 32):
            low, high = _mix(low, high, text, at + position, at + position + 16, secret, position)
        low, high = _avalanche(low), _avalanche(high)
        for position in range(160, size + 1, 32):
            low, high = _mix(low, high, text, at + position - 32, at + position - 16, secret, position - 157)
        low, high = _mix(low, high, text, end - 16, end - 32, secret, 103)
    total = low * _PRIME64_1 + high * _PRIME64_4 + np.uint64(size) * _PRIME64_2
    return _NONE - _avalanche(total), _avalanche(low + high)
