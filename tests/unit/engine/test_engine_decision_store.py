"""Decision store: decisions are found again whole, forgotten by their day, and mature once."""

import numpy as np
import pytest

from pipeline.engine.feedback.decision_store import DecisionStore, Known, Matured
from pipeline.engine.partition_state.decision_segments import MemorySegments
from pipeline.engine.partition_state.state import MemoryStore
from schemas.times import US_PER_DAY
from tests.reference.identities import transaction_digest

ONE, OTHER = transaction_digest("c1", "t1"), transaction_digest("c1", "t2")


class Kept:
    """A decision store with its own store."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.decisions = DecisionStore(self.store, MemorySegments())

    def file(self, *rows: tuple[bytes, int, bytes]) -> None:
        digests, times, values = zip(*rows, strict=True)
        self.decisions.segments.add(digests, times, values)

    def let_mature(self, digest: bytes, at_us: int, rate: float) -> None:
        self.decisions.let_mature([(at_us, digest)], rate)

    def find(self, *digests: bytes) -> list[tuple[int, bytes] | None]:
        found = self.decisions.segments.find(digests)
        read = dict(zip(found, self.decisions.segments.read(list(found.values())), strict=True))
        return [(found[digest].event_time_us, read[digest]) if digest in found else None for digest in digests]

    def commit(self) -> None:
        self.store.commit()
        self.decisions.commit()


@pytest.fixture
def kept() -> Kept:
    return Kept()


def test_what_was_filed_is_found(kept: Kept) -> None:
    kept.file((ONE, 5, b"one"))
    assert kept.find(OTHER, ONE) == [None, (5, b"one")]
    kept.file((OTHER, 3 * US_PER_DAY, b""))
    assert kept.find(OTHER, ONE, OTHER) == [(3 * US_PER_DAY, b""), (5, b"one"), (3 * US_PER_DAY, b"")]


def test_a_later_decision_of_a_transaction_takes_the_place_of_the_first(kept: Kept) -> None:
    kept.file((ONE, 5, b"first"))
    kept.file((ONE, 9 * US_PER_DAY, b"second"))
    kept.decisions.learn([(ONE, 5, Known(emitted=1))])
    kept.commit()
    kept.decisions.forget_before(5, 10)
    kept.commit()
    assert kept.find(ONE) == [(9 * US_PER_DAY, b"second")]
    assert kept.decisions.known([ONE]) == {ONE: Known(emitted=1)}
    kept.decisions.forget_before(10, 10)
    kept.commit()
    assert kept.store.items() == {}


def test_what_is_known_goes_with_its_decision(kept: Kept) -> None:
    known = Known((6, 10**15, 2, 3), 2)
    kept.file((ONE, US_PER_DAY, b"one"))
    kept.decisions.learn([(ONE, US_PER_DAY, known)])
    assert kept.decisions.known([ONE, OTHER]) == {ONE: known}
    kept.commit()
    kept.decisions.forget_before(1, 10)
    assert kept.decisions.known([ONE]) == {ONE: known}
    kept.decisions.forget_before(2, 10)
    kept.commit()
    assert (kept.find(ONE), kept.decisions.known([ONE])) == ([None], {})


def test_what_is_known_is_forgotten_a_bounded_number_at_a_time(kept: Kept) -> None:
    digests = [transaction_digest("c", f"t{number}") for number in range(50)]
    kept.file(*((digest, number, b"x") for number, digest in enumerate(digests)))
    kept.decisions.learn([(digest, number, Known(emitted=1)) for number, digest in enumerate(digests)])
    kept.commit()
    for left in (30, 10, 0, 0):
        kept.decisions.forget_before(1, 20)
        assert len(kept.decisions.known(digests)) == left
        kept.commit()
    assert kept.find(*digests) == [None] * 50
    assert kept.store.items() == {}


def test_each_matures_once_in_order_at_the_rate_it_was_sampled_at(kept: Kept) -> None:
    decisions = kept.decisions
    kept.let_mature(ONE, 20, 0.25)
    kept.let_mature(OTHER, 10, 0.5)
    assert decisions.take_matured(9, 5) == []
    assert decisions.take_matured(30, 1) == [Matured(10, OTHER, 0.5)]
    assert decisions.take_matured(19, 5) == []
    assert decisions.take_matured(20, 5) == [Matured(20, ONE, 0.25)]
    assert decisions.take_matured(10**9, 5) == []
    kept.let_mature(ONE, 7, 1.0)
    assert decisions.take_matured(7, 5) == [Matured(7, ONE, 1.0)]
    kept.commit()
    assert kept.store.items() == {}


def test_of_equal_ones_the_newest_matures_first(kept: Kept) -> None:
    for rate in (0.25, 0.5):
        kept.let_mature(ONE, 20, rate)
    assert kept.decisions.take_matured(20, 5) == [Matured(20, ONE, 0.5), Matured(20, ONE, 0.25)]


@pytest.mark.parametrize("seed", range(5))
def test_groups_that_overlap_mature_in_one_order(seed: int, kept: Kept) -> None:
    random = np.random.default_rng(seed)
    everything = []
    for group in range(12):
        times = random.integers(10 * group, 10 * group + 40, 9).tolist()
        items = [(at_us, transaction_digest("c", f"{group} {row}")) for row, at_us in enumerate(times)]
        kept.decisions.let_mature(items, 0.5)
        everything += [Matured(at_us, digest, 0.5) for at_us, digest in items]
    found: list[Matured] = []
    for now_us in range(0, 200, 7):
        due = sorted(item for item in everything if item.at_us <= now_us)
        taken = kept.decisions.take_matured(now_us, 11)
        assert taken == due[len(found) : len(found) + 11]
        found += taken
    assert len(found) > 90
