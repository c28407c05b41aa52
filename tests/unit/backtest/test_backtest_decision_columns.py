"""References of a backtest into the columns of its decisions: kept while a day of theirs is, and taken back whole."""

import numpy as np

from pipeline.backtest.engine.online import ColumnSegments, DecisionColumns
from pipeline.engine.feedback.decision_store import DecisionStore
from pipeline.engine.partition_state.decision_segments import DecisionReference
from pipeline.engine.partition_state.state import MemoryStore
from pipeline.engine.records.columns import no_transactions
from schemas.messages import Versions
from schemas.times import US_PER_DAY
from tests.reference.identities import transaction_digest

VERSIONS = Versions(lightgbm="l", river="r@0", policy="p", kernel="k", rates="1")


class Kept:
    """A decision store over columns."""

    def __init__(self) -> None:
        self.store, self.segments = MemoryStore(), ColumnSegments()
        self.decisions = DecisionStore(self.store, self.segments)

    def file(self, *rows: tuple[bytes, int]) -> DecisionColumns:
        numbers = np.arange(len(rows), dtype=np.float64)
        columns = DecisionColumns(no_transactions(), numbers[:, np.newaxis], numbers, numbers, numbers, VERSIONS)
        self.segments.begin(columns)
        self.segments.add([digest for digest, _ in rows], [day * US_PER_DAY for _, day in rows], list(range(len(rows))))
        return columns

    def commit(self) -> None:
        self.store.commit()
        self.decisions.commit()

    def rollback(self) -> None:
        self.store.rollback()
        self.decisions.rollback()

    def held(self) -> int:
        return len(self.segments._chunks)


def digest(number: int) -> bytes:
    return transaction_digest("c", f"t{number}")


def test_a_decision_is_a_row_of_its_chunk() -> None:
    kept = Kept()
    first, second = kept.file((digest(0), 1), (digest(1), 2)), kept.file((digest(2), 2))
    found = kept.segments.find([digest(1), digest(2), digest(3)])
    assert kept.segments.read(list(found.values())) == [(first, 1), (second, 0)]


def test_columns_go_when_all_of_their_days_are_forgotten() -> None:
    kept = Kept()
    kept.file((digest(0), 1), (digest(1), 2))
    kept.file((digest(2), 2))
    kept.commit()
    for day, chunks in ((1, 2), (2, 2), (3, 0)):
        kept.decisions.forget_before(day, 0)
        kept.commit()
        assert kept.held() == chunks
    assert kept.store.items() == {}


def test_what_a_batch_forgot_can_be_read_until_it_is_committed() -> None:
    kept = Kept()
    columns = kept.file((digest(0), 1))
    kept.commit()
    kept.decisions.forget_before(2, 0)
    assert kept.segments.read([DecisionReference(US_PER_DAY, 0)]) == [(columns, 0)]


def test_a_batch_that_is_taken_back_leaves_no_trace() -> None:
    kept = Kept()
    columns = kept.file((digest(0), 1), (digest(1), 3))
    kept.commit()
    before = kept.store.items()
    kept.file((digest(2), 1), (digest(3), 4))
    kept.decisions.forget_before(9, 0)
    kept.rollback()
    assert kept.store.items() == before
    (entry,) = kept.segments.find([digest(0)]).values()
    assert kept.segments.read([entry]) == [(columns, 0)]
    kept.commit()
    assert kept.held() == 1
    assert kept.segments.find([digest(number) for number in range(4)]).keys() == {digest(0), digest(1)}
