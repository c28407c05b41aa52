"""When labels are due, and that each transaction gets one at most."""

import json
from datetime import UTC, datetime
from decimal import Decimal

import msgspec
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.learning.regimes import NEVER_US
from pipeline.replay.label_schedule import DueLabel, LabelSchedule, Truth
from pipeline.replay.messages import ENCODER, event_times_us, transaction_messages
from pipeline.replay.replayer import ReplayOptions
from pipeline.simulation.simulator import make_profiles, simulate_days
from schemas.messages import Transaction


def truth(number: int, time_us: int, *, delay_us: int = 100, reported: bool = True) -> Truth:
    return Truth(f"t{number}", "c", time_us, True, None, time_us + delay_us if reported else NEVER_US)


def drain(schedule: LabelSchedule, until_us: int = NEVER_US - 1) -> list[DueLabel]:
    labels = []
    while (label := schedule.pop(until_us)) is not None:
        labels.append(label)
    return labels


def test_a_report_is_due_its_delay_after_the_transaction() -> None:
    schedule = LabelSchedule(100, reviews=False)
    schedule.add(truth(1, 10))
    schedule.add(truth(2, 20))
    assert schedule.next_due_us == 110
    assert schedule.pop(109) is None
    assert [(label.due_us, label.truth.transaction_id) for label in drain(schedule, 110)] == [(110, "t1")]
    assert schedule.next_due_us == 120
    assert schedule.pending == 1
    assert len(drain(schedule)) == 1
    assert (schedule.next_due_us, schedule.pending) == (NEVER_US, 0)


def test_what_nobody_reports_is_not_held_without_reviews() -> None:
    schedule = LabelSchedule(100, reviews=False)
    schedule.add(truth(1, 10, reported=False))
    assert schedule.next_due_us == NEVER_US


def test_a_review_comes_instead_of_the_report() -> None:
    schedule = LabelSchedule(100, reviews=True)
    for number in (1, 2, 3):
        schedule.add(truth(number, number, reported=number != 3))
    schedule.review("c", "t2", "a2", 50)
    schedule.review("c", "t3", "a3", 40)
    schedule.review("c", "t2", "again", 45)
    schedule.review("c", "other", "a", 45)
    assert schedule.next_due_us == 40
    assert schedule.pending == 3
    found = [(label.due_us, label.truth.transaction_id, label.alert_id) for label in drain(schedule)]
    assert found == [(40, "t3", "a3"), (50, "t2", "a2"), (101, "t1", None)]
    assert schedule.unmatched_alerts == 2
    assert schedule.pending == 0


def test_a_review_after_the_report_changes_nothing() -> None:
    schedule = LabelSchedule(100, reviews=True)
    schedule.add(truth(1, 0))
    schedule.review("c", "t1", "a", 100)
    assert [(label.due_us, label.alert_id) for label in drain(schedule)] == [(100, None)]


def test_a_repeated_transaction_is_labelled_once() -> None:
    schedule = LabelSchedule(100, reviews=False)
    schedule.add(truth(1, 0))
    schedule.add(truth(1, 5))
    assert len(drain(schedule)) == 1
    schedule = LabelSchedule(100, reviews=True)
    schedule.add(truth(1, 0))
    schedule.review("c", "t1", "a", 20)
    assert len(drain(schedule, 20)) == 1
    schedule.add(truth(1, 30))
    assert drain(schedule) == []


@given(
    st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=30),
    st.lists(st.tuples(st.integers(0, 35), st.integers(0, 60)), max_size=30),
    st.integers(0, 40),
)
def test_labels_are_in_order_and_at_most_one_each(
    steps: list[tuple[int, bool]], reviews: list[tuple[int, int]], delay_us: int
) -> None:
    schedule = LabelSchedule(delay_us, reviews=True)
    now_us, sent = 0, []
    alerts = iter(reviews)
    for number, (step_us, reported) in enumerate(steps):
        now_us += step_us
        sent += [(label.due_us, label.truth) for label in drain(schedule, now_us)]
        schedule.add(truth(number, now_us, delay_us=(number * 7) % (delay_us + 1), reported=reported))
        if (alert := next(alerts, None)) is not None:
            schedule.review("c", f"t{alert[0]}", f"a{alert[0]}", now_us + alert[1])
    sent += [(label.due_us, label.truth) for label in drain(schedule)]
    assert [due_us for due_us, _ in sent] == sorted(due_us for due_us, _ in sent)
    names = [held.transaction_id for _, held in sent]
    assert len(set(names)) == len(names)
    assert {f"t{number}" for number, (_, reported) in enumerate(steps) if reported} <= set(names)
    assert schedule.pending == 0


def test_messages_hold_exact_amounts_and_times() -> None:
    frame = simulate_days(make_profiles(np.random.default_rng(0), 40, 80), 0, 0, 3)
    frame["event_time"] += pd.Timedelta(1, "us")
    frame["country"] = pd.Series(["BE" if row % 2 else None for row in range(len(frame))], dtype=object)
    frame.loc[frame.index[0], "currency"] = "JPY"
    encoded = [ENCODER.encode(message) for message in transaction_messages(frame, event_times_us(frame))]
    assert len(encoded) == len(frame) > 100
    for bytes_, row in zip(encoded, frame.to_dict("records"), strict=True):
        message = msgspec.json.decode(bytes_, type=Transaction)
        decimals = 0 if row["currency"] == "JPY" else 2
        assert message.amount == Decimal(row["amount_minor"]).scaleb(-decimals)
        assert message.event_time == row["event_time"].to_pydatetime()
        assert message.country == row["country"]
        # A number, not text: other programs read it as one.
        assert isinstance(json.loads(bytes_)["amount"], (int, float))
    assert b'"country"' not in encoded[0]
    assert datetime.fromisoformat(json.loads(encoded[0])["event_time"]).tzinfo == UTC


@pytest.mark.parametrize("wrong", [{"speed": 0}, {"max_in_flight": 0}, {"review_delay_s": -1}])
def test_options_without_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        ReplayOptions(**wrong)  # type: ignore[arg-type]


def test_a_wrong_label_is_corrected_and_a_review_takes_the_corrections_place() -> None:
    def schedule() -> LabelSchedule:
        made = LabelSchedule(100, reviews=True)
        made.add(Truth("t1", "c", 0, True, None, 10, 30))
        return made

    plain = schedule()
    reported = [plain.pop(NEVER_US - 1) for _ in range(3)]
    assert [(item.due_us, item.fraud) for item in reported if item is not None] == [(10, False), (30, True)]
    assert (reported[2], plain.pending, plain.next_due_us) == (None, 0, NEVER_US)
    reviewed = schedule()
    reviewed.pop(10)
    reviewed.review("c", "t1", "alert", 20)
    label = reviewed.pop(NEVER_US - 1)
    assert label is not None
    assert (label.due_us, label.fraud, label.alert_id) == (20, True, "alert")
    assert (reviewed.pop(NEVER_US - 1), reviewed.pending) == (None, 0)
