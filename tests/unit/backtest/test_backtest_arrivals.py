"""What of a log is read for a span: the same of a topic and of its export, however either is cut into batches."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.backtest.input.export_source import ExportLog
from pipeline.backtest.input.span import EARLIEST_US, LATEST_US, ArrivalFilter, ArrivalRange, Span
from pipeline.backtest.input.topic_source import columns_of
from pipeline.kafka.readers.replay_reader import RecordColumns

STAMPS_MS = [40, 90, 100, 70, 150, 199, 120, 200, 130, 210]
TAKEN = [100, 70, 150, 199, 120]


class Reader:
    """Hands out a log of `STAMPS_MS`, so many records at once."""

    def __init__(self, batch: int) -> None:
        self._batch = batch
        self.position = 0

    def read_columns(self, end: int) -> RecordColumns:
        source = range(self.position, min(self.position + self._batch, end))
        self.position = source.stop
        stamps = np.array([STAMPS_MS[number] for number in source], np.int64)
        return RecordColumns(0, np.array(source, np.int64), stamps, [b"%d" % number for number in source])


@pytest.mark.parametrize("batch", [1, 2, 3, 20])
def test_topics_and_exports_are_cut_at_the_same_records(batch: int, tmp_path: Path) -> None:
    arrivals = ArrivalRange(100, 200)
    reader: Any = Reader(batch)
    read = list(columns_of(reader, len(STAMPS_MS), arrivals))
    assert [stamp for part in read for stamp in part.timestamp_ms.tolist()] == TAKEN
    assert [value for part in read for value in part.values] == [b"%d" % offset for offset in range(2, 7)]
    # And no more is read than tells so.
    assert reader.position <= 7 + batch
    frame = pd.DataFrame(
        {
            "timestamp": pd.to_datetime(STAMPS_MS, unit="ms", utc=True),
            "partition": 3,
            "offset": range(len(STAMPS_MS)),
        }
    )
    others = frame.assign(partition=4, timestamp=pd.Timestamp(0, unit="ms", tz="UTC"))
    paths = []
    for first in range(0, len(frame), batch):
        paths.append(tmp_path / f"{first:02}.parquet")
        pd.concat([others, frame.iloc[first : first + batch]]).to_parquet(paths[-1], index=False)
    tables = ExportLog(3, paths).tables(arrivals)
    assert [offset for table in tables for offset in table.column("offset").to_pylist()] == [2, 3, 4, 5, 6]


def test_a_record_without_a_stamp_may_be_of_any_time(tmp_path: Path) -> None:
    path = tmp_path / "0.parquet"
    stamps = pd.to_datetime(pd.Series([50.0, None, 60.0, 300.0]), unit="ms", utc=True)
    pd.DataFrame({"timestamp": stamps, "partition": 0, "offset": range(4)}).to_parquet(path, index=False)
    (table,) = ExportLog(0, [path]).tables(ArrivalRange(100, 200))
    assert table.column("offset").to_pylist() == [1, 2]


@given(st.lists(st.integers(0, 30)), st.integers(0, 31), st.integers(0, 31), st.data())
def test_batches_change_nothing(stamps: list[int], first: int, end: int, data: st.DataObject) -> None:
    cut, taken, at = ArrivalFilter(ArrivalRange(first, end)), [], 0
    while at < len(stamps) and not cut.ended:
        batch = np.array(stamps[at : at + data.draw(st.integers(1, 9))], np.int64)
        taken += batch[cut.rows(batch)].tolist()
        at += len(batch)
    begin = next((n for n, stamp in enumerate(stamps) if stamp >= first), len(stamps))
    behind = next((n for n, stamp in enumerate(stamps) if n >= begin and stamp >= end), len(stamps))
    assert taken == stamps[begin:behind]


def test_a_span_says_when_its_records_arrived() -> None:
    span = Span(5_000_000, 7_000_000, 9_000_999)
    assert span.arrivals(1_000_000, 2_000_000) == (4_000, 11_001)
    assert span.arrivals(9_000_000, None) == ArrivalRange(first_ms=0)
    assert Span(EARLIEST_US, EARLIEST_US, LATEST_US).arrivals(1, 1) == ArrivalRange()
