"""In which order a replay over columns works: by event time, or as it was recorded, batches included."""

from collections import Counter
from dataclasses import replace
from datetime import datetime
from itertools import groupby, product
from typing import Any

import pyarrow.compute as pc
import pytest

from pipeline.backtest import Order, OutOfOrder, replay
from pipeline.engine.partition_state.wait_clock import EARLY_LABEL_GRACE_US
from schemas.codec import timestamp_us
from schemas.messages import FeedbackConfig
from tests.helpers.histories import DAY, START_US, Happening, busy_history, cut, labels, play, transactions
from tests.helpers.live import Live, moment
from tests.unit.backtest.test_backtest import CHUNKS, assert_same, assert_taught, frame, models, options, run


def by_event_time(history: list[Happening]) -> list[Happening]:
    """What arrives at its own time, in the order of time, what is known at an instant before what happens then."""

    def key(happening: Happening) -> tuple[int, bool]:
        return happening.at_us, happening.kind == "transaction"

    def own_us(happening: Happening) -> int:
        moment = happening.fields["labelled_at" if happening.kind == "label" else "event_time"]
        assert isinstance(moment, datetime)
        return timestamp_us(moment)

    return sorted((replace(item, at_us=own_us(item)) for item in history), key=key)


@pytest.mark.parametrize("partitions", [1, 3])
def test_by_event_time_it_is_a_live_run_in_the_order_of_time(partitions: int) -> None:
    history, card = by_event_time(busy_history(21, 400, invalid=0)), options(partitions)
    times = [sent_record.at_us for sent_record in history if sent_record.kind == "transaction"]
    # Instants of two transactions, and of a label and a transaction.
    assert len(set(times)) < len(times)
    live = play(history, Live(models(), card))
    for rows in CHUNKS:
        sold = [table.drop_columns(["timestamp", "sequence"]) for table in cut(transactions(history), rows)]
        reported = [table.drop_columns(["timestamp", "sequence"]) for table in cut(labels(history), rows)]
        assert_same(list(replay(models(), sold, reported, options=card)), live)


def test_a_label_of_an_instant_is_known_to_the_transactions_of_that_instant() -> None:
    at = {"event_time": datetime.fromisoformat("2024-03-01T00:00:00Z")}
    later = datetime.fromisoformat("2024-03-02T00:00:00Z")
    sold = [
        Happening("transaction", {**fine(0), **at}, 0, 0),
        Happening("transaction", {**fine(1), "event_time": later, "card_id": "other"}, 0, 0),
    ]
    happenings = [Happening("label", {**fraud(0), "labelled_at": moment}, 0, 0) for moment in (at["event_time"], later)]
    parts = [table.drop_columns(["timestamp", "sequence"]) for table in (transactions(sold), labels(happenings[1:]))]
    found = frame(list(replay(models(), parts[:1], parts[1:], options=options())))
    assert found["feature_merchant_known_fraud_30d"].tolist() == [0, 1]
    # One of its own transaction waits for it.
    early = labels(happenings[:1]).drop_columns(["timestamp", "sequence"])
    found = frame(list(replay(models(), parts[:1], [early], options=options())))
    assert found["feature_merchant_known_fraud_30d"].tolist() == [0, 1]


@pytest.mark.parametrize("rows", CHUNKS)
def test_batches_are_replayed_as_they_were_read(rows: int | None) -> None:
    """Of one number transactions come first: so a number for each batch repeats what the card agent did."""
    history = [replace(item, sequence=item.sequence // 20) for item in busy_history(31, 400)]
    live = Live(models(), options())
    for _, batch in groupby(history, key=lambda item: item.sequence):
        live.batch([(f"{sent_record.kind}s", sent_record.fields, sent_record.at_us) for sent_record in batch])
    assert_same(run(history, options(), rows), live)


def fine(number: int) -> dict[str, Any]:
    return {
        "transaction_id": f"t{number}", "card_id": "c", "merchant_id": "m", "amount": "10.00", "currency": "EUR",
    }  # fmt: skip


def fraud(number: int) -> dict[str, Any]:
    return {"transaction_id": f"t{number}", "card_id": "c", "label": "fraud", "source": "analyst"}


def test_rows_that_are_out_of_order_are_an_error() -> None:
    history = busy_history(1, 60, invalid=0)
    sold, columns = (table.drop_columns(["timestamp"]) for table in (transactions(history), labels(history)))
    first = sold.filter(pc.equal(sold["transaction_id"], "t0"))
    backwards = columns.sort_by([("labelled_at", "descending")])
    with pytest.raises(OutOfOrder, match=r"transaction of row \d+ .* sort the input by event_time"):
        list(replay(models(), [sold.sort_by([("event_time", "descending")])], options=options()))
    with pytest.raises(OutOfOrder, match=r"label of row \d+ .* sort the input by the time from which it counts"):
        list(replay(models(), [sold.sort_by("event_time")], [backwards], options=options()))
    # From one table to the next.
    with pytest.raises(OutOfOrder, match=rf"transaction of row {sold.num_rows + 1} .* sequence"):
        list(replay(models(), [sold, first], options=options(), order=Order.RECORDED))


def test_a_recorded_order_needs_a_sequence() -> None:
    sold = transactions(busy_history(1, 20))
    with pytest.raises(ValueError, match="column sequence"):
        list(replay(models(), [sold.drop_columns(["sequence"])], options=options(), order=Order.RECORDED))


def test_labels_behind_the_last_transaction_come_at_the_end() -> None:
    history = busy_history(2, 80, invalid=0)
    while history[-1].kind == "label":
        history.pop()
    late = [
        Happening("label", {**sent_record.fields}, sent_record.at_us + DAY, 10_000)
        for sent_record in history
        if sent_record.kind == "label"
    ]
    parts = run([*history, *late], options())
    assert len(parts[-1]) == 0
    assert parts[-1].label_outcomes.total() == len(late) > 0
    assert len(parts[-1].frame()) == 0


@pytest.mark.parametrize(("dedup_days", "label_days"), [(5, 8), (30, 8)])
@pytest.mark.parametrize("off_us", [-1, 0, 1])
def test_horizons_end_at_the_same_microsecond(off_us: int, dedup_days: int, label_days: int) -> None:
    """Repeats, late labels, labels of the forgotten and early labels, each where its rule turns."""
    card = options(dedup=dedup_days * DAY, label=label_days * DAY)
    feedback = FeedbackConfig(label_horizon_us=8 * DAY, maturity_us=5 * DAY, negative_sample_rate=1.0)
    grace_us = EARLY_LABEL_GRACE_US
    distances = (5 * DAY, 8 * DAY, 8 * DAY + grace_us, 8 * DAY + 2 * grace_us, grace_us, 30 * DAY)
    for distance_us in distances:
        then_us, later_us = START_US, START_US + distance_us + off_us
        for first, second in product(("sold", "told"), repeat=2):
            happened = [
                one_of(first, 0, then_us),
                one_of("sold", 1, later_us),
                one_of(second, 0, then_us + distance_us),
                one_of(second, 0, later_us),
                one_of("sold", 2, later_us + DAY),
            ]
            history = [replace(item, sequence=number) for number, item in enumerate(happened)]
            live = assert_taught(history, card, feedback, DAY, None)
            parts = run(history, card)
            outcomes = {name: count for (what, name), count in live.counts.items() if what == "label"}
            assert sum((part.label_outcomes for part in parts), Counter[str]()) == outcomes


def one_of(kind: str, number: int, at_us: int) -> Happening:
    if kind == "sold":
        # Milliseconds are all that a record's stamp keeps.
        return Happening("transaction", {**fine(number), "event_time": moment(at_us)}, at_us + 1_000, 0)
    return Happening("label", {**fraud(number), "labelled_at": moment(at_us)}, at_us, 0)
