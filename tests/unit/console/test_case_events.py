"""The state of a case after its events, in the order of the log."""

from datetime import timedelta

import pytest

from pipeline.console.case_events import CLAIM_LEASE_US, CaseState, RecordedEvent, replay
from schemas.messages import CaseEvent
from tests.helpers.case_topics import NOON, alert_of, event_of
from tests.helpers.logs import microseconds

ALERT = alert_of(1)
START_US = microseconds(NOON)


def at(seconds: float, kind: str, by: str = "ann", **changes: object) -> RecordedEvent:
    return RecordedEvent(event_of(ALERT, kind, by, **changes), START_US + round(seconds * 1e6))


def held_by(state: CaseState, now_us: int) -> str | None:
    return state.holder if now_us < state.holder_until_us else None


def counted(*events: RecordedEvent) -> list[bool]:
    return [entry.counted for entry in replay(events).history]


def test_the_first_claim_holds_for_its_lease() -> None:
    state = replay([at(0, "claimed"), at(1, "claimed", "bob")])
    assert [entry.counted for entry in state.history] == [True, False]
    assert held_by(state, START_US + CLAIM_LEASE_US - 1) == "ann"
    assert held_by(state, START_US + CLAIM_LEASE_US) is None
    later = replay([at(0, "claimed"), at(600, "claimed", "bob")])
    assert held_by(later, START_US + CLAIM_LEASE_US) == "bob"


def test_claims_and_notes_of_the_holder_begin_the_lease_anew() -> None:
    state = replay([at(0, "claimed"), at(500, "noted"), at(1_000, "claimed"), at(1_100, "noted", "bob")])
    assert state.holder_until_us == START_US + round(1_000e6) + CLAIM_LEASE_US
    assert [entry.renewed for entry in state.history] == [False, False, True, False]
    assert counted(at(0, "claimed"), at(500, "noted"), at(700, "claimed", "bob")) == [True, True, False]
    assert counted(at(0, "claimed"), at(700, "noted"), at(800, "claimed", "bob")) == [True, True, True]


@pytest.mark.parametrize("kind", ["closed", "snoozed"])
def test_an_answer_ends_the_claim(kind: str) -> None:
    state = replay([at(0, "claimed"), at(1, kind, until=NOON + timedelta(days=1)), at(2, "claimed", "bob")])
    assert held_by(state, START_US + 3_000_000) == "bob"


def test_undoing_takes_an_event_back_and_the_claim_that_it_ended_holds_again() -> None:
    closed = at(1, "closed", alerts=["alert-1", "alert-2"])
    undoes = closed.event.event_id
    state = replay([at(0, "claimed"), closed, at(2, "undone", undoes=undoes), at(3, "undone", "bob", undoes=undoes)])
    assert state.closed_alerts == set()
    assert held_by(state, START_US + 4_000_000) == "ann"
    assert [(entry.counted, entry.undone) for entry in state.history] == [
        (True, False), (True, True), (True, False), (False, False),
    ]  # fmt: skip
    again = at(4, "closed", alerts=["alert-2"])
    assert replay([closed, at(2, "undone", undoes=undoes), again]).closed_alerts == {"alert-2"}
    claim = at(0, "claimed")
    assert counted(claim, at(1, "undone", undoes=claim.event.event_id)) == [True, False]
    assert counted(at(1, "undone", undoes=undoes), closed) == [False, True]


@pytest.mark.parametrize("kind", ["closed", "snoozed"])
def test_what_somebody_holds_nobody_else_closes_or_snoozes(kind: str) -> None:
    def act(seconds: float, by: str) -> RecordedEvent:
        return at(seconds, kind, by, alerts=["alert-1"] if kind == "closed" else [], until=NOON + timedelta(days=1))

    state = replay([at(0, "claimed"), act(1, "bob")])
    assert [entry.counted for entry in state.history] == [True, False]
    assert (state.closed_alerts, state.snooze) == (frozenset(), None)
    assert held_by(state, START_US + 2_000_000) == "ann"
    assert counted(at(0, "claimed"), act(1, "ann")) == [True, True]
    assert counted(at(0, "claimed"), act(600, "bob")) == [True, True]


def test_of_two_answers_to_the_same_alerts_the_first_counts() -> None:
    first, second = at(0, "closed", alerts=["a"]), at(1, "closed", "bob", alerts=["a"])
    undoing = at(2, "undone", undoes=first.event.event_id)
    assert counted(first, second, at(2, "closed", "bob", alerts=["a", "b"])) == [True, False, True]
    state = replay([first, second, undoing])
    assert ([entry.counted for entry in state.history], state.closed_alerts) == ([True, False, True], frozenset())
    assert replay([first, second, undoing, at(3, "closed", "bob", alerts=["a"])]).closed_alerts == {"a"}


def test_an_answer_stays_when_an_earlier_one_is_undone() -> None:
    first = at(1, "closed", alerts=["a"])
    events = [at(0, "claimed"), first, at(2, "claimed", "bob"), at(3, "closed", "bob", alerts=["b"])]
    undoing = at(4, "undone", undoes=first.event.event_id)
    state = replay([*events, undoing])
    assert ([entry.counted for entry in state.history], state.closed_alerts) == ([True] * 5, frozenset("b"))
    assert held_by(replay([*events[:3], undoing]), START_US + 5_000_000) == "bob"


def test_what_is_reopened_is_open_and_a_new_snooze_takes_the_place_of_the_old() -> None:
    closed = at(0, "closed", alerts=["a", "b"])
    assert replay([closed, at(1, "reopened", alerts=["a"])]).closed_alerts == {"b"}
    assert replay([closed, at(1, "reopened")]).closed_alerts == set()
    first, second = NOON + timedelta(days=1), NOON + timedelta(hours=1)
    state = replay([at(0, "snoozed", until=first), at(1, "snoozed", "bob", until=second)])
    assert state.snooze is not None
    assert state.snooze.until_us == microseconds(second)
    assert replay([at(0, "snoozed", until=first), at(1, "reopened")]).snooze is None


def test_repeats_and_unknown_kinds_change_nothing() -> None:
    claim = at(0, "claimed")
    forged = RecordedEvent(event_of(ALERT, "closed", event_id=claim.event.event_id, alerts=["alert-1"]), START_US + 1)
    state = replay([claim, forged, claim, at(2, "promoted"), at(3, "snoozed")])
    assert [entry.counted for entry in state.history] == [True, False, False]
    assert (state.closed_alerts, state.snooze) == (frozenset(), None)
    assert isinstance(state.entry(claim.event.event_id).event, CaseEvent)  # type: ignore[union-attr]
