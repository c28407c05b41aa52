from datetime import UTC, datetime, timedelta
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.learning.labels import SOURCE_RANK, TRAVELS, LabelState, resolve, source_rank
from schemas.messages import Label

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)


def label(value: str, source: str = "analyst", minutes: float = 0) -> Label:
    return Label(
        transaction_id="t", card_id="c", label=value, source=source, labelled_at=NOON + timedelta(minutes=minutes)
    )


def fold(*labels: Label) -> tuple[LabelState | None, list[str]]:
    state, outcomes = None, []
    for one in labels:
        state, outcome = resolve(state, one)
        outcomes.append(outcome)
    return state, outcomes


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
def test_what_holds_and_what_a_label_did(labels: list[Label], known: str, outcomes: list[str]) -> None:
    state, seen = fold(*labels)
    assert state is not None
    assert state.known == known
    assert seen == outcomes


def test_revisions_count_knowledge_not_labels() -> None:
    state, outcomes = fold(
        label("disputed"), label("fraud", minutes=1), label("fraud", minutes=2), label("legitimate", minutes=3)
    )
    assert state is not None
    assert (state.changes, state.revision) == (2, 1)
    assert [outcome in TRAVELS for outcome in outcomes] == [False, True, False, True]


def test_ranks_follow_the_wire_contract() -> None:
    order = ["audit", "analyst", "chargeback", "issuer", "customer", "simulator", "something else", "rule"]
    ranks = [source_rank(source) for source in order]
    assert ranks == sorted(ranks, reverse=True)
    assert len(set(ranks)) == len(ranks)
    assert set(order) - {"something else"} == set(SOURCE_RANK)


def test_microseconds_decide() -> None:
    early = label("fraud")
    late = Label(
        transaction_id="t",
        card_id="c",
        label="legitimate",
        source="analyst",
        labelled_at=NOON + timedelta(microseconds=1),
    )
    assert fold(early, late)[0] == fold(early, late)[0]
    assert fold(late, early)[0].known == "legitimate"  # type: ignore[union-attr]


LABELS = st.builds(
    label,
    st.sampled_from(["fraud", "legitimate", "disputed", "unknown"]),
    st.sampled_from([*SOURCE_RANK, "bank"]),
    st.integers(0, 3),
)


@given(st.lists(LABELS, min_size=1, max_size=4))
def test_what_holds_does_not_depend_on_the_order_of_arrival(labels: list[Label]) -> None:
    held = set()
    for order in permutations(labels):
        state, _ = fold(*order)
        assert state is not None
        # Rules know nothing: of two of them, either may stand in the state, and both are replaced by any label.
        held.add((state.known, state.rank, state.labelled_at_us if state.rank else None))
    assert len(held) == 1


@given(st.lists(LABELS, max_size=6), LABELS)
def test_a_repeated_label_changes_nothing(labels: list[Label], last: Label) -> None:
    once, _ = fold(*labels, last)
    twice, outcomes = fold(*labels, last, last)
    assert twice == once
    assert outcomes[-1] not in TRAVELS
