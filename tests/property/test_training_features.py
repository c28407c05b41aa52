"""A file has the same features whether it is trained on, backtested or decided live, to the last bit."""

import json
from datetime import datetime, timedelta
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
from pipeline.backtest.runner.replay import Candidate, decide_chunks
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

OPTIONAL = ("currency", "transaction_type", "local_time", "country", "attributes")
clocks = st.datetimes(datetime(2024, 2, 1), datetime(2024, 5, 1)).map(datetime.isoformat)  # noqa: DTZ001
steps_us = st.sampled_from((0, 1, SECOND, HOUR - 1, HOUR, DAY, 3 * DAY, 9 * DAY))
# Of currencies with none, two and three decimals. What is no amount, a purchase of nothing, an unknown type of money
# and more decimals than the currency has are refused.
amounts = st.sampled_from(
    (
        ("0", "EUR"), ("0.01", "EUR"), ("19.99", "EUR"), ("250", "EUR"), ("1500", "JPY"), ("7.25", "USD"),
        ("0.5", "KWD"), ("1.005", "EUR"), ("much", "EUR"), ("1", "XXX"),
    )
)  # fmt: skip
rows = st.fixed_dictionaries(
    {
        "step_us": steps_us,
        "card_id": st.sampled_from(("a", "a", "b", "7", "")),
        "merchant_id": st.sampled_from("mn"),
        "money": amounts,
        "transaction_type": st.sampled_from((None, "purchase", "cash", "refund", "verification")),
        "local_time": st.one_of(st.none(), clocks),
        "country": st.sampled_from((None, "BE")),
        "attributes": st.sampled_from((None, '{"risk":0.25,"shop":"web"}', "{}")),
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
        new["amount"] = amount
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
    parts = decide_chunks([Candidate(models())], schedule.chunks(opened.transactions), [], options=options)
    return np.concatenate([decisions.features for (decisions,) in parts])


def decided_live(table: pa.Table, settings: Settings, delay: timedelta) -> NDArray[np.float64]:
    live = Live(models(), card_options(settings, load_rates(settings), partitions=1))
    records: list[tuple[datetime, int, dict[str, Any]]] = []
    for row in table.to_pylist():
        at, label = row["event_time"], "fraud" if row.pop("fraud") else "legitimate"
        fields = {"currency": "EUR", **row, "event_time": at.isoformat()}
        if fields.get("attributes") is not None:
            fields["attributes"] = json.loads(fields["attributes"])
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


FORMS = ("%Y-%m-%dT%H:%M:%S.%fZ", "%Y-%m-%d %H:%M:%SZ", "%Y-%m-%d %H:%M:%S.%f", "%Y-%m-%dT%H:%M:%S.%f%z")
"""How a file may write a time; without an offset it is of UTC."""


@hypothesis_settings(max_examples=25)
@given(
    drawn=st.lists(rows, min_size=1, max_size=25),
    without=st.sets(st.sampled_from(OPTIONAL)),
    delay_us=st.sampled_from((0, 1, HOUR, 3 * DAY)),
    form=st.sampled_from((*FORMS, "UTC", "Asia/Kolkata")),
    suffix=st.sampled_from(("csv", "parquet")),
    backwards=st.booleans(),
)
def test_training_backtests_and_workers_see_the_same(
    drawn: list[dict[str, Any]], without: set[str], delay_us: int, form: str, suffix: str, backwards: bool
) -> None:
    with TemporaryDirectory() as name:
        settings = Settings(data_dir=Path(name), kafka_bootstrap_servers=None)
        path, delay = Path(name) / f"history.{suffix}", timedelta(microseconds=delay_us)
        # Somebody accepts the first; a form without decimals holds whole seconds.
        drawn[0] |= {"money": ("19.99", "EUR"), "card_id": "a"}
        drawn = [row | {"step_us": row["step_us"] // SECOND * SECOND} for row in drawn] if form == FORMS[1] else drawn
        table = history(drawn, without)
        expected = decided_live(table, settings, delay)
        write(table, path, form)
        np.testing.assert_array_equal(backtested(path, settings, delay), expected)
        if backwards:
            # A training puts a file in order, of equal times the first row first.
            times = pa.array([time.timestamp() for time in table["event_time"].to_pylist()])
            write(table.take(np.argsort(-times.to_numpy(), kind="stable")), path, form)
        np.testing.assert_array_equal(trained(path, settings, delay), expected)


def write(table: pa.Table, path: Path, form: str) -> None:
    """Write a file whose times have a form, or in Parquet a type that shows a zone."""
    times, column = table["event_time"], table.schema.get_field_index("event_time")
    if form in FORMS:
        written = pa.array([f"{time:{form}}" for time in times.to_pylist()])
    else:
        written = times.cast(pa.timestamp("us", form))
    changed = table.set_column(column, "event_time", written)
    pacsv.write_csv(changed, path) if path.suffix == ".csv" else pq.write_table(changed, path)
