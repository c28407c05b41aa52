from datetime import UTC, datetime, timedelta
from itertools import permutations
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.learning.labels import (
    KNOWN,
    OUTCOMES,
    SOURCE_RANK,
    UNSEEN,
    Outcome,
    StateNumbers,
    known_value,
    resolve_numbers,
    source_rank,
)
from schemas.codec import timestamp_us

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)


class Stated(NamedTuple):
    """A label, in the numbers of `resolve_numbers`."""

    rank: int
    labelled_at_us: int
    known: int


def label(value: str, source: str = "analyst", minutes: float = 0) -> Stated:
    labelled_at = NOON + timedelta(minutes=minutes)
    return Stated(source_rank(source), timestamp_us(labelled_at), KNOWN.index(known_value(value)))


def replay(*labels: Stated) -> tuple[StateNumbers, list[Outcome]]:
    state, outcomes = UNSEEN, []
    for label in labels:
        state, outcome = resolve_numbers(state, *label)
        outcomes.append(OUTCOMES[outcome])
    return state, outcomes


def known_of(state: StateNumbers) -> str:
    return KNOWN[state[2]]


@pytest.mark.parametrize(
    ("labels", "known", "outcomes"),
    [
        ([label("fraud")], "fraud", ["first"]),
        ([label("fraud"), label("fraud", minutes=1)], "fraud", ["first", "confirmed"]),
        ([label("fraud"), label("fraud")], "fraud", ["first", "repeated"]),
        ([label("fraud"), label("legitimate", minutes=1)], "legitimate", ["first", "changed"]),
        ([label("fraud", minutes=1), label("legitimate")], "fraud", ["first", "contradicted"]),
        ([label("fraud"), label("fraud", "customer", 9)], "fraud", ["first", "outranked"]),
        ([label("fraud", "customer", 9), label("legitimate", "audit")], "legitimate", ["first", "changed"]),
        ([label("disputed", "customer"), label("fraud", "chargeback")], "fraud", ["noted", "first"]),
        ([label("fraud"), label("unknown", minutes=1)], "none", ["first", "changed"]),
        ([label("a new value"), label("legitimate", minutes=1)], "legitimate", ["noted", "first"]),
        ([label("fraud", "ceo")], "fraud", ["first"]),
        ([label("fraud", "ceo", 9), label("legitimate", "simulator")], "legitimate", ["first", "changed"]),
        ([label("legitimate", "simulator"), label("fraud", "ceo", 9)], "legitimate", ["first", "contradicted"]),
        ([label("fraud", "rule"), label("legitimate", "a new source")], "legitimate", ["ignored", "first"]),
        ([label("fraud", "simulator"), label("legitimate", "rule", 9)], "fraud", ["first", "ignored"]),
    ],
)
def test_what_holds_and_what_a_label_did(labels: list[Stated], known: str, outcomes: list[str]) -> None:
    state, seen = replay(*labels)
    assert known_of(state) == known
    assert seen == outcomes


def test_changes_count_knowledge_not_labels() -> None:
    state, outcomes = replay(
        label("disputed"), label("fraud", minutes=1), label("fraud", minutes=2), label("legitimate", minutes=3)
    )
    assert outcomes == ["noted", "first", "confirmed", "changed"]
    *_, changes = state
    assert changes == 2


def test_ranks_follow_the_wire_contract() -> None:
    order = ["audit", "analyst", "chargeback", "issuer", "customer", "simulator", "something else", "rule"]
    ranks = [source_rank(source) for source in order]
    assert ranks == sorted(ranks, reverse=True)
    assert len(set(ranks)) == len(ranks)
    assert set(order) - {"something else"} == set(SOURCE_RANK)


def test_microseconds_decide() -> None:
    early, late = label("fraud"), label("legitimate", minutes=1 / 60_000_000)
    assert late.labelled_at_us == early.labelled_at_us + 1
    assert replay(early, late)[0][:3] == replay(late, early)[0][:3] == late


LABELS = st.builds(
    label,
    st.sampled_from(["fraud", "legitimate", "disputed", "unknown"]),
    st.sampled_from([*SOURCE_RANK, "bank"]),
    st.integers(0, 3),
)


@given(st.lists(LABELS, min_size=1, max_size=4))
def test_what_holds_does_not_depend_on_the_order_of_arrival(labels: list[Stated]) -> None:
    held = set()
    for order in permutations(labels):
        (rank, labelled_at_us, known, _), _ = replay(*order)
        # Rules know nothing: of two of them, either may stand in the state, and both are replaced by any label.
        held.add((known, rank, labelled_at_us if rank else None))
    assert len(held) == 1


@given(st.lists(LABELS, max_size=6), LABELS)
def test_a_repeated_label_changes_nothing(labels: list[Stated], last: Stated) -> None:
    once, _ = replay(*labels, last)
    twice, outcomes = replay(*labels, last, last)
    assert twice == once
    assert outcomes[-1] in ("repeated", "outranked", "contradicted", "ignored")
