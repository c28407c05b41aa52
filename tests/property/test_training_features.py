"""A file has the same features whether it is trained on, backtested or decided live, to the last bit."""

from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.backtest.input.acceptance import Acceptance
from pipeline.backtest.input.file_source import FileSource
from pipeline.backtest.input.label_book import LabelBook
from pipeline.backtest.input.span import EARLIEST_US, LATEST_US, Span
from pipeline.backtest.labels.schedule import ScheduledLabels
from pipeline.backtest.runner.replay import Candidate, replay_scheduled
from pipeline.commands.training_input import rows_of_file
from pipeline.features.catalogue import FEATURES
from pipeline.history.files import resolve_mapping
from pipeline.learning.regimes import LabelRegime
from pipeline.settings import Settings
from pipeline.settings.kernel_options import card_options
from pipeline.settings.rate_table import load_rates
from schemas.codec import timestamp_us
from tests.helpers.live import Live, moment
from tests.property.strategies import DAY, HOUR, SECOND, START_US
from tests.unit.backtest.test_backtest import models

OPTIONAL = ("currency", "transaction_type", "local_time", "country")
clocks = st.datetimes(datetime(2024, 2, 1), datetime(2024, 5, 1)).map(datetime.isoformat)  # noqa: DTZ001
steps_us = st.sampled_from((0, 1, SECOND, HOUR - 1, HOUR, DAY, 3 * DAY, 9 * DAY))
# Of currencies with none, two and three decimals; a purchase of nothing and an unknown type of money are refused.
amounts = st.sampled_from(
    (("0", "EUR"), ("0.01", "EUR"), ("19.99", "EUR"), ("250", "EUR"), ("1500", "JPY"), ("7.25", "USD"), ("0.5", "KWD"))
)  # fmt: skip
rows = st.fixed_dictionaries(
    {
        "step_us": steps_us,
        "card_id": st.sampled_from(("a", "a", "b")),
        "merchant_id": st.sampled_from("mn"),
        "money": amounts,
        "transaction_type": st.sampled_from((None, "purchase", "cash", "refund", "verification")),
        "local_time": st.one_of(st.none(), clocks),
        "country": st.sampled_from((None, "BE")),
        "fraud": st.booleans(),
        "repeats": st.integers(0, 8),
    }
)


def history(drawn: list[dict[str, Any]], without: set[str]) -> pa.Table:
    """Rows in the order of event time, some of which repeat one before, with the same content or another."""
    made: list[dict[str, Any]] = []
    time_us = START_US
    for number, row in enumerate(drawn):
        time_us += row["step_us"]
        amount, currency = row["money"] if "currency" not in without else (row["money"][0][:4], "EUR")
        fields = {name: value for name, value in row.items() if name not in {"step_us", "money", "repeats"}}
        new = {"transaction_id": f"t{number}", **fields, "event_time": moment(time_us), "currency": currency}
        new["amount"] = str(Decimal(amount))
        if row["repeats"] == 1 and made:
            new |= {name: made[-1][name] for name in ("transaction_id", "card_id")}
        made.append(new)
    return pa.Table.from_pylist([{name: value for name, value in row.items() if name not in without} for row in made])


def trained(path: Path, settings: Settings, delay: timedelta) -> NDArray[np.float64]:
    regime = LabelRegime(delay_days=delay / timedelta(days=1))
    return rows_of_file(path, resolve_mapping(path), settings, regime, None, FEATURES, early=False).data.features


def backtested(path: Path, settings: Settings, delay: timedelta) -> NDArray[np.float64]:
    options = card_options(settings, load_rates(settings), partitions=1)
    acceptance = Acceptance(options.rates, options.future_tolerance_us)
    whole = Span(EARLIEST_US, EARLIEST_US, LATEST_US)
    opened = FileSource(path, resolve_mapping(path)).open(whole, acceptance, [], LabelBook())
    schedule = ScheduledLabels(LabelRegime(delay_days=delay / timedelta(days=1)))
    parts = replay_scheduled([Candidate(models())], opened.transactions, [schedule], [], options=options)
    return np.concatenate([decisions.features for (decisions,) in parts])


def decided_live(table: pa.Table, settings: Settings, delay: timedelta) -> NDArray[np.float64]:
    live = Live(models(), card_options(settings, load_rates(settings), partitions=1))
    records: list[tuple[datetime, int, dict[str, Any]]] = []
    for row in table.to_pylist():
        at, label = row["event_time"], "fraud" if row.pop("fraud") else "legitimate"
        fields = {"currency": "EUR", **row, "amount": float(row["amount"]), "event_time": at.isoformat()}
        names = {name: row[name] for name in ("transaction_id", "card_id")}
        known = {**names, "label": label, "source": "simulator", "labelled_at": (at + delay).isoformat()}
        records.append((at, 1, fields))
        # Nobody reports what was refused.
        if live.event_time_us(fields, timestamp_us(at)) is not None:
            records.append((at + delay, 0, known))
    for at, is_transaction, fields in sorted(records, key=lambda record: record[:2]):
        (live.transaction if is_transaction else live.label)(fields, timestamp_us(at))
    found = [decision.features or {} for decision in live.decisions]
    return np.array([[features[name] for name in FEATURES] for features in found], np.float64)


@hypothesis_settings(max_examples=25)
@given(
    drawn=st.lists(rows, min_size=1, max_size=25),
    without=st.sets(st.sampled_from(OPTIONAL)),
    delay_us=st.sampled_from((0, 1, HOUR, 3 * DAY)),
    zone=st.sampled_from(("UTC", "Asia/Kolkata")),
    suffix=st.sampled_from(("csv", "parquet")),
)
def test_training_backtests_and_workers_see_the_same(
    drawn: list[dict[str, Any]], without: set[str], delay_us: int, zone: str, suffix: str
) -> None:
    with TemporaryDirectory() as name:
        compare(drawn, without, timedelta(microseconds=delay_us), zone, Path(name) / f"history.{suffix}")


def compare(drawn: list[dict[str, Any]], without: set[str], delay: timedelta, zone: str, path: Path) -> None:
    settings = Settings(data_dir=path.parent, kafka_bootstrap_servers=None)
    # Somebody accepts the first.
    drawn[0] |= {"money": ("19.99", "EUR")}
    table = history(drawn, without)
    if path.suffix == ".csv":
        pacsv.write_csv(table, path)
    else:
        column = table.schema.get_field_index("event_time")
        pq.write_table(table.set_column(column, "event_time", table["event_time"].cast(pa.timestamp("us", zone))), path)
    expected = decided_live(table, settings, delay)
    np.testing.assert_array_equal(backtested(path, settings, delay), expected)
    np.testing.assert_array_equal(trained(path, settings, delay), expected)
