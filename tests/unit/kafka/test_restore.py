"""The offsets at which a restore begins to read, and at which reading goes on behind it."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.kafka.records.member import Member
from pipeline.kafka.session import restore
from pipeline.kafka.session.state_handler import Restored, Stateless
from pipeline.settings import Settings
from schemas.topics import TRANSACTIONS

NAME, BEGIN = TRANSACTIONS.name, 7
"""The log holds what stands at this offset or behind it."""


@pytest.mark.parametrize(
    ("accepts", "snapshot", "committed", "read_from", "goes_on"),
    [
        (True, None, 9, BEGIN, 9),
        # Nothing that a replay needs is behind this snapshot, though its position is gone.
        (True, 5, 5, BEGIN, BEGIN),
        (True, 8, 9, 8, 9),
        (False, None, 9, 0, 9),
        (False, 5, 5, 5, 5),
    ],
)
def test_a_restore_begins_at_the_log_where_lost_records_are_accepted(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    *,
    accepts: bool,
    snapshot: int | None,
    committed: int,
    read_from: int,
    goes_on: int,
) -> None:
    asked: list[int] = []

    class Reader:
        def __init__(self, bootstrap: str, settings: Settings, topic: str, number: int, start: int, *_: Any, **__: Any):
            asked.append(start)

        def close(self) -> None:
            """Holds nothing."""

    class Handler(Stateless):
        def restore(self, *_: Any) -> Any:
            return None if snapshot is None else Restored({NAME: snapshot}, 0)

    monkeypatch.setattr(restore, "RangeReader", Reader)
    monkeypatch.setattr(restore, "log_ranges", lambda *_: {(NAME, 0): range(BEGIN, 20)})
    monkeypatch.setattr(restore, "in_recorded_order", lambda *_: ())
    settings = Settings(accept_lost_records=accepts, data_dir=tmp_path)
    member = Member("", settings, "label", [TRANSACTIONS])
    ((number, done),) = restore.restore_partitions(member, {(NAME, 0): committed}, Handler(), lambda: None)
    assert number == 0
    assert done.positions == {(NAME, 0): goes_on}
    assert asked == [read_from]
