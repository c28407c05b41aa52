"""Files and frames as tables of a replay, and what a replay keeps in memory."""

from dataclasses import replace as changed
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from pipeline.backtest import delayed_truth, file_tables, frame_tables, label_tables, replay
from pipeline.backtest.engine.column_kernels import Engine
from pipeline.backtest.input import acceptance
from pipeline.backtest.input.order import NOTHING
from pipeline.demo.world import World
from pipeline.engine.cards.card_join import CardJoin
from pipeline.engine.cards.joins import Arrivals, Retention
from pipeline.engine.cards.pending import NO_LABELS, MemoryPending
from pipeline.engine.cards.transaction_index import MemoryIndex
from pipeline.engine.records import accept
from pipeline.engine.records.columns import digest_keys
from pipeline.history.canonical_columns import UnusableSource
from pipeline.history.files import resolve_mapping
from tests.helpers.histories import DAY
from tests.unit.backtest.test_backtest import frame, models, options

DELAY_S = 3 * 86_400.0


@pytest.fixture(scope="module")
def history() -> pd.DataFrame:
    days = World(cards=40, merchants=20, seed=3, history_days=20, start=date(2024, 3, 1))
    return pd.concat(list(days.days(0, 20)), ignore_index=True)


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_files_give_what_the_frame_gives(history: pd.DataFrame, suffix: str, tmp_path: Path) -> None:
    sold, reported = tmp_path / f"sold.{suffix}", tmp_path / f"told.{suffix}"
    truth = pa.concat_tables(delayed_truth(frame_tables(history), DELAY_S, legitimate=False)).to_pandas()
    for path, rows in ((sold, history.drop(columns="amount_minor")), (reported, truth)):
        if suffix == "csv":
            rows.to_csv(path, index=False, date_format="%Y-%m-%dT%H:%M:%S.%f%z")
        else:
            rows.to_parquet(path, index=False)
    from_frame = replay(models(), frame_tables(history), frame_tables(truth), options=options())
    from_files = replay(models(), file_tables(sold, chunk_rows=50), label_tables(reported, 7), options=options())
    pd.testing.assert_frame_equal(frame(list(from_files)), frame(list(from_frame)), check_exact=True)


def test_a_file_of_the_handbook_is_read_by_its_own_names(tmp_path: Path) -> None:
    path = tmp_path / "handbook.parquet"
    pd.DataFrame(
        {
            "TRANSACTION_ID": np.arange(3, dtype=np.int32),
            "TX_DATETIME": pd.to_datetime(["2018-04-01 00:00:31", "2018-04-01 00:02:10", "2018-04-01 00:07:56"]),
            "CUSTOMER_ID": np.array([596, 4961, 2], np.int16),
            "TERMINAL_ID": np.array([3156, 3412, 1365], np.int16),
            "TX_AMOUNT": [57.16, 81.51, 0.0],
            "TX_FRAUD": np.array([0, 1, 0], np.int8),
        }
    ).to_parquet(path)
    (part,) = replay(models(), file_tables(path, changed(resolve_mapping(path), currency="USD")), options=options())
    found = part.frame()
    assert found["transaction_id"].tolist() == ["0", "1", "2"]
    assert found["card_id"].tolist() == ["596", "4961", "2"]
    assert found["amount_minor"].tolist() == [5716, 8151, 0]
    assert set(found["currency"]) == {"USD"}
    assert found["transaction_type"].tolist() == ["purchase", "purchase", "verification"]
    assert part.rejects == ()
    tables = pa.concat_tables(delayed_truth(file_tables(path), 60.0))
    assert tables["label"].to_pylist() == ["legitimate", "fraud", "legitimate"]
    assert str(tables["labelled_at"][0].as_py()) == "2018-04-01 00:01:31+00:00"


def test_a_truth_that_nobody_can_tell_is_an_error(history: pd.DataFrame) -> None:
    words = history.head(3).assign(fraud=["1", "False", "perhaps"])
    (table,) = delayed_truth(frame_tables(words.head(2)), 1.0)
    assert table["label"].to_pylist() == ["fraud", "legitimate"]
    for unknown, shown in (("perhaps", "'perhaps'"), (None, "no value in a row")):
        with pytest.raises(UnusableSource, match=f"{shown}, which is neither 0 nor 1 .+: write one .+ --mapping$"):
            list(delayed_truth(frame_tables(words.assign(fraud=["1", "False", unknown])), 1.0))


@pytest.mark.parametrize("time", ["2024-03-01 00:00:00Z", "2024-03-01T01:00:00.0000000+01:00", "2024-03-01T00:00:00z"])
def test_a_truth_is_known_a_delay_after_any_time_that_is_accepted(time: str) -> None:
    row = {"transaction_id": ["t"], "card_id": ["c"], "event_time": [time], "fraud": [1]}
    (labels,) = delayed_truth([pa.table(row)], 60.0)
    assert labels["labelled_at"].to_pylist() == [datetime(2024, 3, 1, 0, 1, tzinfo=UTC)]


def test_a_file_may_hold_dates_alone(tmp_path: Path) -> None:
    path = tmp_path / "days.csv"
    path.write_text(
        "transaction_id,event_time,card_id,merchant_id,amount\n1,2024-03-01,c,m,5\n2,2024-03-02 10:30,c,m,5\n"
    )
    mapping = changed(resolve_mapping(path), time_zone="Asia/Kolkata")
    (part,) = replay(models(), file_tables(path, mapping), options=options(), time_zone="Asia/Kolkata")
    days = [datetime(2024, 2, 29, 18, 30, tzinfo=UTC), datetime(2024, 3, 2, 5, 0, tzinfo=UTC)]
    assert part.frame()["event_time"].tolist() == days


def test_a_file_that_is_none_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UnusableSource, match="there is no file"):
        list(label_tables(tmp_path / "labels.parquet"))


def test_rows_in_order_are_not_shown_to_the_decoder(history: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an ordinary row was decoded by itself")

    monkeypatch.setattr(accept, "decode_transaction", refuse)
    monkeypatch.setattr(acceptance, "decode_label", refuse)
    truth = delayed_truth(frame_tables(history), DELAY_S)
    assert sum(map(len, replay(models(), frame_tables(history), truth, options=options()))) == len(history)


def test_nothing_gives_nothing_and_refused_rows_are_reported_all_the_same() -> None:
    assert list(replay(models(), [], options=options())) == []
    bad = pa.table({"transaction_id": ["t"], "amount": ["1"]})
    (part,) = replay(models(), [bad, bad], options=options())
    assert (len(part), [reject.row for reject in part.rejects]) == (0, [0, 1])
    engine = Engine(options(3))
    assert len(engine.decide(models(), NOTHING)) == 0
    engine.close()


def test_the_index_forgets_what_lies_behind_the_horizons() -> None:
    index, retention, a_day = MemoryIndex(), Retention(5 * DAY, 8 * DAY), 200
    join = CardJoin(index, MemoryPending())
    names = pa.array(["c"] * a_day)
    for day in range(200):
        ids = pa.array([f"{day}-{number}" for number in range(a_day)])
        times_us = day * DAY + np.arange(a_day)
        merchants, none = np.zeros((a_day, 3), np.int64), np.empty(0, np.int64)
        number = np.arange(a_day)
        arrivals = Arrivals(
            digest_keys(names, ids), times_us, number, number, number, 0, 0 * number, merchants, NO_LABELS, none
        )
        assert join.join(retention, arrivals).accepted.all()
        join.commit()
        assert not join.join(retention, arrivals).accepted.any()
        join.forget(0)
        join.commit()
    # A horizon of 8 days, a fortnight behind it, and as much again before there is no room.
    assert index.transactions <= 2 * 24 * a_day
    assert index.capacity <= 4 * 24 * a_day
