"""Of all labels of a transaction the one that holds is found, in however many parts they are looked at."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from pipeline.backtest.input.acceptance import Acceptance, accept_transactions
from pipeline.backtest.input.label_book import LabelBook
from pipeline.backtest.labels import final_labels
from pipeline.backtest.labels.final_labels import FinalLabels
from pipeline.engine.records.columns import Transactions
from pipeline.learning.labels import KNOWN, known_value, source_rank
from pipeline.settings import Settings
from pipeline.settings.rate_table import load_rates

DELAY_US = 86_400_000_000
WORDS = ("fraud", "legitimate", "disputed")
SOURCES = ("rule", "simulator", "customer", "analyst", "somebody")


def transactions(n: int) -> Transactions:
    at = pd.date_range("2024-03-01T00:00:00", periods=n, freq="s", tz="UTC")
    table = pa.table(
        {
            "transaction_id": [f"t{number % 90}" for number in range(n)], "card_id": [f"c{n // 90}" for n in range(n)],
            "merchant_id": ["m"] * n, "event_time": pa.array(at), "amount": [1.0] * n, "currency": ["EUR"] * n,
        }
    )  # fmt: skip
    rows, refused = accept_transactions(table, Acceptance(load_rates(Settings()), 0))
    assert not refused
    return rows


def label_book(rows: Transactions, n: int) -> LabelBook:
    """``n`` labels of some of ``rows``, several of many, and of others."""
    rng = np.random.default_rng(4)

    def some(words: tuple[str | None, ...], n: int) -> pa.Array:
        return pa.array(rng.choice(np.array(words, object), n), pa.string())

    book = LabelBook()
    for row in np.split(rng.integers(0, len(rows) // 2, n), 3):
        ids, cards = (column.take(pa.array(row)) for column in (rows.transaction_id, rows.card_id))
        at_us = rng.integers(0, 4, len(row)) * DELAY_US
        book.add(ids, cards, some(WORDS, len(row)), some(SOURCES, len(row)), at_us, some(("skimming", None), len(row)))
    others = pa.array(["t1"]), pa.array(["nobody"])
    book.add(*others, pa.array(["fraud"]), pa.array(["audit"]), np.zeros(1, np.int64), pa.nulls(1, pa.string()))
    return book


def held_labels(labels: pd.DataFrame) -> pd.DataFrame:
    """Return the largest label of each transaction, of equal ones the last; none where that says nothing."""
    largest: dict[tuple[str, str], tuple[tuple[int, pd.Timestamp, int], int]] = {}
    for number, row in enumerate(labels.itertuples(index=False)):
        key = source_rank(row.source), row.labelled_at, KNOWN.index(known_value(row.label))
        name = row.card_id, row.transaction_id
        if row.source != "rule" and (name not in largest or key >= largest[name][0]):
            largest[name] = key, number
    return labels.iloc[[number for key, number in largest.values() if KNOWN[key[2]] != "none"]]


def labels_by_key(labels: pd.DataFrame) -> dict[tuple[str, str], tuple[str, str, str | None]]:
    """Return, by card and transaction, what is known, who said so, and the type of the fraud."""
    texts = labels.astype(dict.fromkeys(("card_id", "transaction_id", "label", "source", "fraud_type"), object))
    names = zip(texts["card_id"], texts["transaction_id"], strict=True)
    kinds = texts["fraud_type"].where(texts["fraud_type"].notna(), None)
    values = zip(texts["label"].map(known_value), texts["source"], kinds, strict=True)
    return dict(zip(names, values, strict=True))


@pytest.mark.parametrize("part_rows", [None, 100, 1])
def test_the_label_that_holds_is_returned(monkeypatch: pytest.MonkeyPatch, part_rows: int | None) -> None:
    if part_rows is not None:
        monkeypatch.setattr(final_labels, "PART_ROWS", part_rows)
    rows, book = transactions(1_000), label_book(transactions(1_000), 3_000)
    expected = labels_by_key(held_labels(book.whole()))
    found, due = FinalLabels(book.whole()), LabelBook()
    assert len(found) == len(expected) > 300
    parts = [rows.take(slice(0, 400)), rows.take(slice(400, 400)), rows.take(slice(400, None))]
    given = Transactions.concat(list(found.with_truth(iter(parts), DELAY_US, due)))
    names = list(zip(given.card_id.to_pylist(), given.transaction_id.to_pylist(), strict=True))
    assert given.truth is not None
    assert [KNOWN[item] for item in given.truth.tolist()] == [expected.get(name, ("none",))[0] for name in names]
    whole = due.whole()
    known = [row for row, name in enumerate(names) if name in expected]
    labelled = list(zip(whole["card_id"], whole["transaction_id"], strict=True))
    assert labelled == [names[row] for row in known]
    assert list(labels_by_key(whole).values()) == [expected[name] for name in labelled]
    at_us = whole["labelled_at"].astype("int64").to_numpy()
    np.testing.assert_array_equal(at_us, given.event_time_us[known] + DELAY_US)


def test_where_no_label_came_nothing_is_known() -> None:
    found, due = FinalLabels(LabelBook().whole()), LabelBook()
    (given,) = found.with_truth(iter([transactions(3)]), DELAY_US, due)
    assert given.truth is not None
    assert given.truth.tolist() == [KNOWN.index("none")] * 3
    assert (len(found), len(due.whole())) == (0, 0)
