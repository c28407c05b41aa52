"""A replay leaves out what a batch's marker says was quarantined: a record, a range, or rows of a block."""

import msgspec
import pytest

from pipeline.kafka.readers.replay_reader import _without
from schemas.messages import RecordPosition
from schemas.records import Record

BATCH = [Record("p.features", 1, offset, 0, None, b"") for offset in range(4)]


def at(offset: int, end: int | None = None, row: int | None = None, **changes: object) -> RecordPosition:
    position = RecordPosition(topic="features", partition=1, offset=offset, end=end, row=row)
    return msgspec.structs.replace(position, **changes)


@pytest.mark.parametrize(
    ("quarantined", "left"),
    [
        ([], {0: (), 1: (), 2: (), 3: ()}),
        ([at(1)], {0: (), 2: (), 3: ()}),
        ([at(1, end=3)], {0: (), 3: ()}),
        ([at(2, row=5), at(2, row=3)], {0: (), 1: (), 2: (3, 5), 3: ()}),
        ([at(2, row=5), at(2)], {0: (), 1: (), 3: ()}),
        ([at(1, partition=0), at(1, topic="labels", row=1)], {0: (), 1: (), 2: (), 3: ()}),
    ],
)
def test_a_replay_leaves_out_what_was_quarantined(
    quarantined: list[RecordPosition], left: dict[int, tuple[int, ...]]
) -> None:
    records = _without(BATCH, quarantined, lambda name: name.removeprefix("p."))
    assert {record.offset: record.skipped_rows for record in records} == left
