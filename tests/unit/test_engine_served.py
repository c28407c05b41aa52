"""Decisions as served, in their store: found again whole, forgotten by their day, and matured once."""

import pytest

from pipeline.engine.layout import transaction_digest
from pipeline.engine.served import Known, Matured, Served, ServedDecisions
from pipeline.engine.state import MemoryStore
from pipeline.features.catalogue import US_PER_DAY
from pipeline.learning.labels import LabelState

ONE, OTHER = transaction_digest("c1", "t1"), transaction_digest("c1", "t2")


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def served(store: MemoryStore) -> ServedDecisions:
    return ServedDecisions(store)


def test_what_was_filed_is_found(served: ServedDecisions) -> None:
    served.file(ONE, 5, b"one")
    assert served.find([OTHER, ONE]) == [None, Served(5, b"one")]
    served.file(OTHER, 3 * US_PER_DAY, b"")
    assert served.find([OTHER, ONE, OTHER]) == [
        Served(3 * US_PER_DAY, b""),
        Served(5, b"one"),
        Served(3 * US_PER_DAY, b""),
    ]


def test_a_later_decision_of_a_transaction_takes_the_place_of_the_first(
    served: ServedDecisions, store: MemoryStore
) -> None:
    served.file(ONE, 5, b"first")
    served.file(ONE, 9 * US_PER_DAY, b"second")
    served.learn(ONE, Known(told=1))
    store.settle()
    served.forget_before(5, 10)
    assert served.find([ONE]) == [Served(9 * US_PER_DAY, b"second")]
    assert served.known(ONE) == Known(told=1)
    served.forget_before(10, 10)
    store.settle()
    assert store.items() == {}


def test_what_is_known_goes_with_its_decision(served: ServedDecisions, store: MemoryStore) -> None:
    state = LabelState(6, 10**15, "fraud", 3)
    served.file(ONE, US_PER_DAY, b"one")
    served.learn(ONE, Known(state, 2))
    assert (served.known(ONE), served.known(OTHER)) == (Known(state, 2), Known())
    store.settle()
    served.forget_before(1, 10)
    assert served.known(ONE) == Known(state, 2)
    served.forget_before(2, 10)
    assert (served.find([ONE]), served.known(ONE)) == ([None], Known())


def test_each_matures_once_in_order_at_the_rate_it_was_sampled_at(served: ServedDecisions, store: MemoryStore) -> None:
    served.let_mature(ONE, 20, 0.25)
    served.let_mature(OTHER, 10, 0.5)
    served.let_mature(ONE, 20, 0.25)
    assert served.take_matured(9, 5) == []
    assert served.take_matured(30, 1) == [Matured(OTHER, 10, 0.5)]
    assert served.take_matured(19, 5) == []
    assert served.take_matured(20, 5) == [Matured(ONE, 20, 0.25)]
    assert served.take_matured(10**9, 5) == []
    served.let_mature(ONE, 7, 1.0)
    assert served.take_matured(7, 5) == [Matured(ONE, 7, 1.0)]
    store.settle()
    assert store.items() == {}


def test_undo_forgets_how_far_it_had_come(served: ServedDecisions, store: MemoryStore) -> None:
    served.file(ONE, 0, b"one")
    served.let_mature(ONE, 20, 0.25)
    store.settle()
    served.settle()
    served.take_matured(20, 5)
    served.forget_before(5, 10)
    store.undo()
    served.undo()
    assert served.take_matured(20, 5) == [Matured(ONE, 20, 0.25)]
    served.forget_before(5, 10)
    assert served.find([ONE]) == [None]


def test_identifiers_are_kept_apart_whatever_they_hold() -> None:
    pairs = [
        ("c", "1t"),
        ("c1", "t"),
        ("c\x001", "t"),
        ("c", "\x001t"),
        ("c" * 256, "t"),
        ("c" * 255, "ct"),
        ("1 c", "t"),
    ]
    assert len({transaction_digest(*pair) for pair in pairs}) == len(pairs)
