"""Records as stores keep them: labels that wait lie there, written by earlier releases too."""

import msgspec

from schemas.records import Record

RECORD = Record("labels", 3, 41, 1_709_294_400_000, None, b"{}", (("trace", b"1"), ("empty", None)))
PACKED = msgspec.msgpack.encode(
    ["labels", 3, 41, 1_709_294_400_000, None, b"{}", [["trace", b"1"], ["empty", None]], []]
)


def test_a_record_is_packed_as_a_list_of_its_fields_and_read_again() -> None:
    assert msgspec.msgpack.encode(RECORD) == PACKED
    assert msgspec.msgpack.decode(PACKED, type=Record) == RECORD
