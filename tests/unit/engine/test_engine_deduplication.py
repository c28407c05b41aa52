"""What the score agent takes for a repeat: batches written twice, and topics that were made anew under their name."""

from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise

import msgspec
import numpy as np
import pytest

from pipeline.engine.partition_state.state import LoadedState
from pipeline.engine.records.results import Result
from pipeline.engine.scores.score import ScorePartition
from schemas.records import Record
from schemas.topics import DECISIONS, PROFILED, TRANSACTIONS
from tests.helpers.champion import active, decide
from tests.helpers.logs import Log, after, decode_decision, to, transaction
from tests.helpers.memory_columns import MemoryColumn
from tests.unit.engine.test_engine_card import partition

MODELS = active()
NOW = after(400)


class AtLeastOnce:
    """A card agent that writes batches of ``transactions`` to ``profiled``, and writes some of them again."""

    def __init__(self) -> None:
        self.transactions, self.profiled = Log(TRANSACTIONS), Log(PROFILED)
        self.card = partition()
        self.minutes = 0
        self.named = 0

    def made_anew(self) -> None:
        """``transactions`` is deleted and made anew: its offsets begin again, and no state of it is left."""
        self.transactions, self.card = Log(TRANSACTIONS), partition()

    def buy(self, count: int) -> list[Record]:
        records = []
        for _ in range(count):
            at = after(minutes=self.named)
            records.append(self.transactions.append(transaction(self.named, at), at))
            self.named += 1
        return records

    def write(self, records: Sequence[Record], *, committed: bool = True, most: int | None = None) -> list[Record]:
        """One batch, of which no more than ``most`` records arrive; what is not committed can be written again."""
        result = self.card.process(records, self.next_batch())
        self.card.commit() if committed else self.card.rollback()
        del result.outputs[most if most is not None else len(result.outputs) :]
        return self.profiled.take(result)

    def next_batch(self) -> datetime:
        self.minutes += 1
        return after(300, minutes=self.minutes)


@pytest.fixture
def writer() -> AtLeastOnce:
    return AtLeastOnce()


def score(loaded: LoadedState | None = None) -> ScorePartition:
    return ScorePartition(None, loaded)


def decided(results: Sequence[Result]) -> list[str]:
    return [decode_decision(o.value or b"").transaction_id for result in results for o in to(DECISIONS, result)]


def names(first: int, end: int) -> list[str]:
    return [f"t{number}" for number in range(first, end)]


def test_a_topic_made_anew_is_decided_from_its_beginning(writer: AtLeastOnce) -> None:
    for _ in range(5):
        writer.write(writer.buy(10))
    writer.made_anew()
    writer.write(writer.buy(10))
    writer.write(writer.buy(60))
    result = decide(score(), writer.profiled.records, MODELS, NOW)
    assert decided([result]) == names(0, 120)
    assert result.counts["duplicate", ""] == 0


def test_a_topic_made_anew_after_its_only_batch(writer: AtLeastOnce) -> None:
    """Both topics begin with a batch at offset 0: their first transactions tell them apart."""
    writer.write(writer.buy(50))
    writer.made_anew()
    writer.write(writer.buy(10))
    assert decided([decide(score(), writer.profiled.records, MODELS, NOW)]) == names(0, 60)


def test_offsets_that_were_set_back_on_purpose_are_decided_again(writer: AtLeastOnce) -> None:
    batches = [writer.buy(10) for _ in range(3)]
    for batch in batches:
        writer.write(batch)
    writer.card = partition()
    writer.write([record for batch in batches for record in batch])
    assert decided([decide(score(), writer.profiled.records, MODELS, NOW)]) == names(0, 30) * 2


@pytest.mark.parametrize("arrived", [1, 4, 7, None])
def test_a_batch_that_is_written_again_and_again_is_decided_once(writer: AtLeastOnce, arrived: int | None) -> None:
    writer.write(writer.buy(5))
    batch = writer.buy(8)
    writer.write(batch, committed=False, most=arrived)
    writer.write(batch[:3], committed=False)
    # Of another length, as the next attempt may be.
    longer = [*batch, *writer.buy(4)]
    writer.write(longer, committed=False, most=9)
    writer.write(longer)
    writer.write(writer.buy(3))
    assert decided([decide(score(), writer.profiled.records, MODELS, NOW)]) == names(0, 20)


@pytest.mark.parametrize("cut", [1, 3, 7])
@pytest.mark.parametrize("arrived", [4, 8])
def test_a_batch_that_is_read_again_as_several_is_decided_once(writer: AtLeastOnce, cut: int, arrived: int) -> None:
    writer.write(writer.buy(5))
    batch = writer.buy(8)
    writer.write(batch, committed=False, most=arrived)
    writer.write(batch[:cut])
    # The second part fails in its turn, and is read again with what follows.
    writer.write(batch[cut:], committed=False, most=2)
    writer.write([*batch[cut:], *writer.buy(4)])
    writer.write(writer.buy(3))
    assert decided([decide(score(), writer.profiled.records, MODELS, NOW)]) == names(0, 20)


def test_a_late_write_does_not_hide_where_a_batch_began(writer: AtLeastOnce) -> None:
    batch = writer.buy(6)
    late = partition().process(batch, writer.next_batch())
    writer.write(batch[:3], committed=False)
    writer.profiled.take(late)
    writer.write(batch[:4], committed=False)
    writer.write(batch[:2])
    writer.write([*batch[2:], *writer.buy(2)])
    assert decided([decide(score(), writer.profiled.records, MODELS, NOW)]) == names(0, 8)


def test_what_a_former_owner_writes_late_is_a_repeat(writer: AtLeastOnce) -> None:
    late_batch = writer.buy(4)
    late = partition().process(late_batch, writer.next_batch())
    writer.write(late_batch)
    writer.write(writer.buy(4))
    writer.profiled.take(late)
    writer.write(writer.buy(4))
    result = decide(score(), writer.profiled.records, MODELS, NOW)
    assert (decided([result]), result.counts["duplicate", ""]) == (names(0, 12), 4)


@pytest.mark.parametrize("seed", range(3))
def test_every_transaction_is_decided_once_whatever_was_written_twice(seed: int) -> None:
    """Live, replayed and loaded from a snapshot alike, however the log is cut; topics are made anew in between."""
    random = np.random.default_rng(seed)
    writer = AtLeastOnce()
    for number in range(60):
        if number % 20 == 19:
            writer.made_anew()
        batch = writer.buy(int(random.integers(1, 9)))
        while random.random() < 0.4:
            writer.write(batch, committed=False, most=int(random.integers(0, len(batch) + 1)))
            batch += writer.buy(int(random.integers(0, 3)))
        writer.write(batch)
    records = writer.profiled.records
    assert len(records) > writer.named + 20
    live, replayed, results = score(), score(), []
    cuts = sorted({0, *random.integers(1, len(records), 30).tolist(), len(records)})
    for first, end in pairwise(cuts):
        decide(live, records[first:end], MODELS, NOW)
        live.rollback()
        results.append(decide(live, records[first:end], MODELS, NOW))
        live.commit()
        replayed.replay(records[first:end])
        replayed.commit()
    assert decided(results) == names(0, writer.named)
    assert inputs_of(replayed) == inputs_of(live)
    (last,) = inputs_of(live)
    assert last["last"] == writer.transactions.records[-1].offset
    assert inputs_of(loaded(live)) == inputs_of(live)


def inputs_of(state: ScorePartition) -> list[dict[str, object]]:
    return [msgspec.structs.asdict(item) for item in state._inputs.dump()]


def loaded(state: ScorePartition) -> ScorePartition:
    values, columns, _ = state.dump(full=True)
    return score(
        LoadedState(
            values, {name: MemoryColumn(column.dtype, column.items, column.changed) for name, column in columns.items()}
        )
    )
