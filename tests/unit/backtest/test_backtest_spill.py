"""Columns on disk hold what was added, in whatever parts, and nothing of other rows."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from pipeline.backtest.input.spill import (
    BLOCK_ROWS,
    NumberColumn,
    TextColumn,
    WordColumn,
    blocks,
    in_blocks,
    mapped_frame,
    summed,
    texts,
)
from pipeline.backtest.labels import final_labels
from pipeline.backtest.labels.schedule import ReviewOutcome
from pipeline.backtest.metrics import ranking
from pipeline.backtest.report import ReportOptions, build_report
from tests.helpers.backtests import result


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many blocks of a few rows."""
    defaults = blocks.__defaults__
    monkeypatch.setattr(blocks, "__defaults__", (3,))
    assert defaults == (BLOCK_ROWS,)


def test_numbers_come_back_as_they_were_added() -> None:
    column = NumberColumn(np.float64)
    column.add(np.array([0.1, np.nan]))
    column.add(np.empty(0))
    column.add(np.arange(6.0)[::2])
    np.testing.assert_array_equal(column.finish(), [0.1, np.nan, 0.0, 2.0, 4.0])
    assert NumberColumn(np.int8).finish().tolist() == []


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_texts_come_back_also_from_parts_of_longer_arrays(kind: pa.DataType) -> None:
    reported = ["Müller", "", "x" * 300, "b", ""]
    column = TextColumn()
    column.add(pa.array(["before", *reported[:3], "behind"], kind)[1:4])
    column.add(pa.array([], kind))
    column.add(pa.array(reported[3:], kind))
    found = column.finish()
    found.validate(full=True)
    assert found.to_pylist() == reported
    assert TextColumn().finish().to_pylist() == []
    empty = TextColumn()
    empty.add(pa.array(["", ""], kind))
    assert empty.finish().to_pylist() == ["", ""]


def test_words_are_numbered_over_all_parts() -> None:
    column = WordColumn()
    column.add(pa.array(["fraud", None, "legitimate"]))
    column.add(pa.array(["legitimate", "fraud", "disputed"]))
    found = column.finish()
    assert found.to_pylist() == ["fraud", None, "legitimate", "legitimate", "fraud", "disputed"]
    assert len(found.dictionary) == 3


def test_a_frame_lies_where_its_columns_lie() -> None:
    numbers, names = NumberColumn(np.float64), TextColumn()
    numbers.add(np.arange(4.0))
    names.add(pa.array(list("abcd")))
    lying = numbers.finish()
    frame = mapped_frame({"number": pa.array(lying), "name": names.finish()})
    assert np.shares_memory(frame["number"].to_numpy(), lying)
    assert frame["name"].tolist() == list("abcd")
    assert texts(frame["name"], slice(1, 3)).to_pylist() == ["b", "c"]


@pytest.mark.usefixtures("small_blocks")
def test_sums_of_blocks_are_those_of_the_whole_to_the_last_bit() -> None:
    assert [(rows.start, rows.stop) for rows in blocks(7)] == [(0, 3), (3, 6), (6, 7)]
    rng = np.random.default_rng(1)
    source, values = rng.integers(0, 3, 1_000), rng.lognormal(0, 3, 1_000)
    whole = np.bincount(source, weights=values, minlength=5)
    assert summed(source, 5, lambda rows: values[rows]).tolist() == whole.tolist()


@pytest.mark.usefixtures("small_blocks")
def test_a_column_made_in_blocks_can_be_sorted_in_its_place() -> None:
    values = np.random.default_rng(2).random(10)
    column = in_blocks(10, np.float64, lambda rows: values[rows])
    np.testing.assert_array_equal(column, values)
    column.sort()
    np.testing.assert_array_equal(column, np.sort(values))


def test_a_report_says_the_same_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    given = result(variants=2)
    # As the recorded order has them.
    mixed = np.random.default_rng(3).permutation(len(given.variants[0].decisions))
    variants = [
        replace(variant, decisions=variant.decisions.iloc[mixed].reset_index(drop=True)) for variant in given.variants
    ]
    disputed = given.labels[::7].assign(label="disputed", source="analyst")
    labels = pd.concat([given.labels, disputed], ignore_index=True)
    labels["labelled_at"] += pd.to_timedelta(np.arange(len(labels)) % 41, "h")
    known_at = given.labels["labelled_at"] - pd.Timedelta(hours=47)
    answers = given.labels[["transaction_id", "card_id"]].assign(known_at=known_at)
    reviewed = [replace(variant, reviewed=ReviewOutcome(len(answers), 0, answers)) for variant in given.variants]
    few = ReportOptions(top=3, replicates=20)
    asked = [replace(given, labels=labels, variants=source) for source in (given.variants, variants, reviewed)]
    whole = [build_report(item, few).json for item in asked]
    metrics_of = [json.loads(item)["variants"][0]["metrics"] for item in whole]
    assert metrics_of[2] != metrics_of[0]
    monkeypatch.setattr(blocks, "__defaults__", (100,))
    monkeypatch.setattr(final_labels, "PART_ROWS", 70)
    monkeypatch.setattr(ranking, "BLOCK_ROWS", 50)
    assert [build_report(item, few).json for item in asked] == whole


def test_texts_of_a_frame_may_be_of_any_kind() -> None:
    for kind in ("object", "string[pyarrow]"):
        assert texts(pd.Series(["a", "b", "c"], dtype=kind), slice(0, 2)).to_pylist() == ["a", "b"]
