"""Files of transactions: what is read, and what is refused with which words."""

import gzip
import json
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.features.catalogue import CARD_FEATURES
from pipeline.history.canonical_columns import COLUMNS, UnusableSource
from pipeline.history.files import ColumnMapping, resolve_mapping
from pipeline.history.frames import read_transactions
from pipeline.replay.messages import ENCODER, event_times_us, transaction_messages
from pipeline.settings import Settings
from pipeline.settings.rate_table import load_rates
from pipeline.simulation.simulator import make_profiles, simulate_days
from schemas.codec import decode_transaction
from tests.helpers.features import compute_features
from tests.helpers.files import load_transactions

HEADER = "TRANSACTION_ID,TX_DATETIME,CUSTOMER_ID,TERMINAL_ID,TX_AMOUNT,TX_TIME_SECONDS,TX_FRAUD,TX_FRAUD_SCENARIO\n"
ROWS = (
    "0,2018-04-01 00:00:31,0596,3156,57.16,31,0,0\n"
    "1,2018-04-01 00:02:10,4961,3412,1081.51,130,1,1\n"
    "2,2018-04-01 00:07:56,0002,1365,146,476,1,3\n"
)


def csv(folder: Path, text: str, name: str = "transactions.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.fixture
def handbook(tmp_path: Path) -> Path:
    return csv(tmp_path, HEADER + ROWS)


def test_the_handbooks_columns_are_recognised(handbook: Path) -> None:
    frame = load_transactions(handbook)
    assert tuple(frame.columns) == (*COLUMNS, "transaction_type")
    assert frame["event_time"].dtype == pd.DatetimeTZDtype("us", "UTC")
    assert frame["event_time"][0] == datetime(2018, 4, 1, 0, 0, 31, tzinfo=UTC)
    assert frame["card_id"].tolist() == ["0596", "4961", "0002"]
    assert frame["merchant_id"].tolist() == ["3156", "3412", "1365"]
    assert frame["amount_minor"].tolist() == [5_716, 108_151, 14_600]
    assert frame["amount"].tolist() == [57.16, 1081.51, 146.0]
    assert frame["fraud"].tolist() == [False, True, True]
    assert frame["fraud_type"].tolist() == [None, "amount", "card"]


def test_the_handbooks_zero_amounts_are_verifications(tmp_path: Path) -> None:
    path = csv(tmp_path, HEADER + ROWS + "3,2018-04-01 00:09:00,0596,3156,0,540,0,0\n")
    frame = load_transactions(path)
    assert frame["transaction_type"].tolist() == [None, None, None, "verification"]
    messages = list(transaction_messages(frame, event_times_us(frame)))
    assert [message.transaction_type for message in messages] == ["purchase"] * 3 + ["verification"]
    for message, amount in zip(messages, [5_716, 108_151, 14_600, 0], strict=True):
        accepted = decode_transaction(
            ENCODER.encode(message),
            record_timestamp_us=2**60,
            future_tolerance_us=0,
            rates=load_rates(Settings()),
        )
        assert accepted.amount_base_minor == amount
    # Training sees what the agents see: a verification has features and enters no window.
    counts = compute_features(frame)[:, CARD_FEATURES.index("card_count_30d")]
    assert counts.tolist() == [0, 0, 0, 1]
    again = pd.concat([frame, frame.tail(1).assign(transaction_id="another")], ignore_index=True)
    assert compute_features(again)[-1, CARD_FEATURES.index("card_count_30d")] == 1


def test_a_files_own_types_are_kept_and_other_files_get_none(tmp_path: Path) -> None:
    header = HEADER.replace("TX_FRAUD_SCENARIO", "TX_TYPE")
    typed = csv(tmp_path, header + "0,2018-04-01 00:00:31,1,2,0,31,0,refund\n", "typed.csv")
    mapping = resolve_mapping(typed)
    mapping = replace(mapping, columns={**mapping.columns, "transaction_type": "TX_TYPE"})
    assert load_transactions(typed, mapping)["transaction_type"].tolist() == ["refund"]
    plain = csv(tmp_path, "transaction_id,event_time,card_id,merchant_id,amount\n1,2024-01-01T00:00:00Z,c,m,0\n")
    assert "transaction_type" not in load_transactions(plain).columns


@pytest.mark.parametrize("name", ["simulated.parquet", "simulated.csv"])
def test_a_simulated_file_comes_back_as_it_was(tmp_path: Path, name: str) -> None:
    made = simulate_days(make_profiles(np.random.default_rng(0), 60, 120), 0, 0, 12)
    path = tmp_path / name
    if name.endswith("csv"):
        made.to_csv(path, index=False)
    else:
        made.to_parquet(path, index=False)
    frames = list(read_transactions(path, batch_rows=100))
    assert max(len(frame) for frame in frames) <= 100
    read = pd.concat(frames, ignore_index=True)
    assert made["fraud"].any()
    pd.testing.assert_frame_equal(read, made)


def test_parquet_types_of_other_makers_are_read(tmp_path: Path) -> None:
    path = tmp_path / "typed.parquet"
    table = pa.table(
        {
            "id": pa.array([7, 8], pa.int32()),
            "when": pa.array([1_522_540_800_000, 1_522_540_801_000], pa.timestamp("ms", "Europe/Brussels")),
            "card": pa.array(["a", "b"]).dictionary_encode(),
            "shop": pa.array(["x", "y"], pa.large_string()),
            "value": pa.array([Decimal("10.01"), Decimal("-3.00")], pa.decimal128(12, 2)),
            "bad": pa.array([True, False]),
            "where": pa.array(["BE", None]),
        }
    )
    pq.write_table(table, path)
    columns = {
        "transaction_id": "id",
        "event_time": "when",
        "card_id": "card",
        "merchant_id": "shop",
        "amount": "value",
        "fraud": "bad",
        "country": "where",
    }
    frame = load_transactions(path, ColumnMapping(columns, currency="USD"))
    assert frame["transaction_id"].tolist() == ["7", "8"]
    assert frame["event_time"][1] == datetime(2018, 4, 1, 0, 0, 1, tzinfo=UTC)
    assert frame["amount_minor"].tolist() == [1_001, -300]
    assert frame["currency"].tolist() == ["USD", "USD"]
    assert frame["fraud"].tolist() == [True, False]
    assert frame["fraud_type"].tolist() == [None, None]
    assert frame["country"].tolist() == ["BE", None]


@pytest.mark.parametrize("kind", [pa.date32(), pa.date64(), pa.string(), pa.large_string(), pa.string_view()])
def test_a_date_alone_is_its_midnight_in_every_type(kind: pa.DataType, tmp_path: Path) -> None:
    path = tmp_path / "dates.parquet"
    day = date(2018, 4, 1) if pa.types.is_date(kind) else "2018-04-01"
    columns = {"transaction_id": ["a"], "card_id": ["c"], "merchant_id": ["m"], "amount": [1.5]}
    pq.write_table(pa.table({**columns, "event_time": pa.array([day], kind)}), path)
    assert load_transactions(path)["event_time"].tolist() == [datetime(2018, 4, 1, tzinfo=UTC)]


def test_a_file_without_truth_has_no_truth_columns(tmp_path: Path) -> None:
    path = csv(tmp_path, "transaction_id,event_time,card_id,merchant_id,amount\n1,2024-01-01T00:00:00Z,c,m,1.5\n")
    assert "fraud" not in load_transactions(path).columns


def test_naive_times_are_in_the_zone_that_is_given(tmp_path: Path) -> None:
    times = ("2018-04-01 12:00:00", "2018-04-01T12:30:00+01:00", "2018-04-01 14:00:00")
    path = csv(tmp_path, HEADER + "".join(f"{row},{time},c,m,1,0,0,0\n" for row, time in enumerate(times)))
    brussels = load_transactions(path, replace(resolve_mapping(path), time_zone="Europe/Brussels"))
    assert brussels["event_time"].dt.strftime("%H:%M").tolist() == ["10:00", "11:30", "12:00"]


def test_minor_units_follow_the_currency(tmp_path: Path) -> None:
    path = csv(
        tmp_path,
        "transaction_id,event_time,card_id,merchant_id,amount,currency\n"
        "1,2024-01-01T00:00:00Z,c,m,1500,JPY\n2,2024-01-01T00:00:00Z,c,m,1.234,KWD\n3,2024-01-01T00:00:00Z,c,m,1.23,EUR\n",
    )
    assert load_transactions(path)["amount_minor"].tolist() == [1_500, 1_234, 123]


def test_times_are_filtered_from_inclusive_to_exclusive(handbook: Path) -> None:
    frame = load_transactions(
        handbook,
        start=datetime(2018, 4, 1, 0, 2, 10, tzinfo=UTC),
        end=datetime(2018, 4, 1, 0, 7, 56, tzinfo=UTC),
    )
    assert frame["transaction_id"].tolist() == ["1"]
    assert list(read_transactions(handbook, start=datetime(2020, 1, 1, tzinfo=UTC))) == []
    with pytest.raises(UnusableSource, match="offset"):
        load_transactions(handbook, start=datetime(2020, 1, 1))  # noqa: DTZ001 (the case under test)


@pytest.mark.parametrize("batch_rows", [1, 2, 100])
def test_unsorted_rows_are_refused_or_sorted(tmp_path: Path, batch_rows: int) -> None:
    first, second, third = ROWS.splitlines(keepends=True)
    path = csv(tmp_path, HEADER + second + first + third)
    with pytest.raises(UnusableSource, match=r"TX_DATETIME is not in order.*--sort"):
        list(read_transactions(path, batch_rows=batch_rows))
    frames = list(read_transactions(path, sort=True, batch_rows=batch_rows))
    assert [name for frame in frames for name in frame["transaction_id"]] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("9,yesterday,c,m,1,0,0,0", r"row 4, column TX_DATETIME: 'yesterday' is no time"),
        ("9,,c,m,1,0,0,0", r"row 4, column TX_DATETIME: None is no time"),
        ("9,2018-04-02,c,m,much,0,0,0", r"row 4, column TX_AMOUNT: 'much' is no amount"),
        ("9,2018-04-02,c,m,inf,0,0,0", r"row 4, column TX_AMOUNT: 'inf' is no amount"),
        ("9,2018-04-02,c,m,1.005,0,0,0", r"row 4, column TX_AMOUNT: '1.005' has more than the 2 decimals of EUR"),
        ("9,2018-04-02,c,m,1e17,0,0,0", r"row 4, column TX_AMOUNT: '1e17' is too large"),
        ("9,2018-04-02,c,m,1,0,maybe,0", r"row 4, column TX_FRAUD: 'maybe' is neither"),
        ("9,2018-04-02,,m,1,0,0,0", r"row 4, column CUSTOMER_ID: None is empty"),
        ("9,2018-04-02,c", r"cannot be read as csv"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(UnusableSource, match=message):
        load_transactions(csv(tmp_path, HEADER + ROWS + row + "\n"))


def test_missing_columns_are_named_with_the_remedy(tmp_path: Path, handbook: Path) -> None:
    path = csv(tmp_path, "TRANSACTION_ID,CUSTOMER_ID,TX_AMOUNT\n1,2,3\n", "short.csv")
    with pytest.raises(UnusableSource, match=r"no column is known for .*event_time.*; say which .* --mapping"):
        resolve_mapping(path)
    with pytest.raises(UnusableSource, match="no time zone Mars"):
        load_transactions(handbook, replace(resolve_mapping(handbook), time_zone="Mars"))


def test_what_is_no_file_of_transactions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnusableSource, match="no file"):
        resolve_mapping(tmp_path / "absent.csv")
    with pytest.raises(UnusableSource, match="is a URL: copy it to a disk of this machine"):
        resolve_mapping(Path("s3://bucket/history.parquet"))
    with pytest.raises(UnusableSource, match=r"unknown file type; use \.parquet"):
        resolve_mapping(csv(tmp_path, "", "transactions.xlsx"))
    with pytest.raises(UnusableSource, match="cannot be read as parquet"):
        resolve_mapping(csv(tmp_path, "text", "text.parquet"))
    with pytest.raises(UnusableSource, match="is empty: write a line of column names"):
        resolve_mapping(csv(tmp_path, "", "empty.csv"))


@pytest.mark.parametrize(
    ("time", "why"),
    [
        (1_522_540_800, "1522540800 counts from 1970; write it as 2018-04-01T00:00:31Z"),
        (1_522_540_800.5, "counts from 1970"),
        ("1522540800123", "counts from 1970"),
        ("01.04.2018 00:00:31", "01.04.2018 00:00:31 begins with day or month; write it as 2018-04-01T00:00:31Z"),
        ("4/1/2018", "begins with day or month"),
    ],
)
def test_times_in_other_ways_are_named(time: object, why: str, tmp_path: Path) -> None:
    row = {"transaction_id": ["1"], "event_time": [time], "card_id": ["c"], "merchant_id": ["m"], "amount": [1.0]}
    for path in (tmp_path / "times.parquet", tmp_path / "times.csv"):
        pd.DataFrame(row).to_parquet(path) if path.suffix == ".parquet" else pd.DataFrame(row).to_csv(path)
        with pytest.raises(UnusableSource, match=rf"times\..*, row 1, column event_time: .*{why}"):
            resolve_mapping(path)


@pytest.mark.parametrize("times", [[20_180_401, 20_180_402], [31, 86_400], [5.0, 1.5e9]])
def test_numbers_are_no_times(times: list[float], tmp_path: Path) -> None:
    path = tmp_path / "numbers.parquet"
    rows = {"transaction_id": ["1", "2"], "card_id": ["c"] * 2, "merchant_id": ["m"] * 2, "amount": [1.0] * 2}
    pd.DataFrame({**rows, "event_time": times}).to_parquet(path)
    with pytest.raises(UnusableSource, match="event_time holds numbers"):
        load_transactions(path)


@pytest.mark.parametrize(("separator", "word"), [(";", "semicolons"), ("\t", "tabs")])
def test_other_separators_are_named(separator: str, word: str, tmp_path: Path) -> None:
    for decimal in ".,":
        path = csv(tmp_path, (HEADER + ROWS).replace(",", separator).replace(".", decimal))
        with pytest.raises(UnusableSource, match=f"its columns stand between {word}: write commas between columns"):
            resolve_mapping(path)


@pytest.mark.parametrize("place", ["TX_FRAUD_SCENARIO", "0596"])
def test_text_of_another_encoding_is_refused_with_what_to_do(place: str, tmp_path: Path) -> None:
    path = csv(tmp_path, "")
    path.write_bytes((HEADER + ROWS).replace(place, "é").encode("latin-1"))
    with pytest.raises(UnusableSource, match="; save it as UTF-8"):
        load_transactions(path)


def test_compressed_csv_is_read(tmp_path: Path, handbook: Path) -> None:
    path = tmp_path / "packed.csv.gz"
    path.write_bytes(gzip.compress(handbook.read_bytes()))
    pd.testing.assert_frame_equal(load_transactions(path), load_transactions(handbook))


@pytest.mark.parametrize("name", ["out.parquet", "out.csv"])
def test_the_simulate_command_writes_what_the_simulator_makes(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    arguments = ["--days", "3", "--cards", "40", "--merchants", "80", "--seed", "5", "--start", "2024-02-28"]
    result = CliRunner().invoke(main, ["simulate", str(path), *arguments])
    assert result.exit_code == 0, result.output
    made = simulate_days(make_profiles(np.random.default_rng(5), 40, 80), 5, 0, 3, date(2024, 2, 28))
    pd.testing.assert_frame_equal(load_transactions(path), made)
    assert json.loads(result.stdout)["transactions"] == len(made)
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["a.xlsx"], ".parquet or a .csv"), (["no/such/a.csv"], "no directory"), (["a.csv", "--cards", "2"], "too few")],
)
def test_the_simulate_command_refuses_nonsense(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(main, ["simulate", *arguments])
    assert result.exit_code == 2
    assert message in result.stderr
