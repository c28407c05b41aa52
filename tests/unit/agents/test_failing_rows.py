"""A block that fails is quarantined row by row: the rows to blame, and nothing of the others."""

import shutil
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents import failures, loop
from agents.failures import failing_rows
from agents.loop import AgentLoop, Partitions
from agents.score import ScorePartitions
from agents.topology import SCORE
from pipeline.engine.encoding.blocks import row_count
from pipeline.engine.records.results import Result
from pipeline.engine.scores.block_messages import read_messages
from pipeline.engine.scores.decider import Decider
from pipeline.engine.scores.score import ScorePartition
from pipeline.kafka.records.batch import make_batch
from pipeline.kafka.session.quarantine import Quarantines
from pipeline.observability.health import Health
from pipeline.observability.metrics import WorkerMetrics
from pipeline.settings import Settings
from schemas.messages import ProfiledTransaction
from schemas.records import Output, Record
from schemas.topics import CONTROL, DEAD_LETTERS, DECISIONS, PROFILED, TRANSACTIONS
from tests.helpers.champion import active
from tests.helpers.logs import LabelLog, Log, after, decode_decision, label, reason, to, transaction
from tests.unit.agents.test_loop import Committed
from tests.unit.engine.test_engine_card import partition

ODD = ValueError("odd")


def block(odd: Sequence[int] = (), rows: int = 12) -> Record:
    """A block of transactions of one merchant, and a label behind them; some say that they are odd."""
    log, labels = Log(TRANSACTIONS), LabelLog()
    for number in range(rows):
        note = {"note": "odd"} if number in odd else {}
        log.append(transaction(number, after(minutes=number), **note), after(minutes=number))
    result = partition().process([*log.records, labels.append(label(0, after(1)), after(1))], after(2))
    (record,) = Log(PROFILED).take_whole(result)
    assert row_count(record.value) == rows + 1
    return record


@given(st.sets(st.integers(0, 12), max_size=12))
def test_the_rows_to_blame_are_found_whichever_they_are(odd: set[int]) -> None:
    record, whole = block(), set(range(13))

    def tried(record: Record) -> Exception | None:
        return ODD if odd - set(record.skipped_rows) else None

    found = failing_rows(record, tried)
    assert [row for row, _ in found] == ([] if odd == whole else sorted(odd))


def test_rows_that_fail_together_alone_leave_the_block_to_blame() -> None:
    def tried(record: Record) -> Exception | None:
        return None if {3, 9} & set(record.skipped_rows) else ODD

    assert failing_rows(block(), tried) == []
    assert failing_rows(Record("profiled", 0, 0, 0, None, b"no block"), lambda _: ODD) == []


class Faulty(ScorePartitions):
    """The score agent's partitions, failing for rows that say that they are odd."""

    def process(self, records: Sequence[Record], now: datetime) -> Result:
        parts = [(self._held[record.partition], [record]) for record in records]
        result = self._decider.process(parts, active(), now)
        for record in records:
            for row, message in enumerate(read_messages(record.value)):
                if isinstance(message, ProfiledTransaction) and row not in record.skipped_rows:
                    assert b"odd" not in bytes(message.transaction), "an odd row"
        return result


class Known(Quarantines):
    """Knows what this worker has written."""

    written: list[Output]

    def refresh(self, waiting: object) -> None:
        self._take(
            [
                Record(CONTROL.name, 0, 0, 0, record.key, record.value)
                for record in self.written
                if record.topic is CONTROL
            ]
        )


class Worker:
    """The score agent's loop on one partition, without a broker."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
        monkeypatch.setattr(loop, "Session", Committed)
        monkeypatch.setattr(failures, "RETRY_PAUSE_S", 0.0)
        chosen = Settings(quarantine_after=1, **settings)
        self.quarantines = Known("nowhere:1", chosen, SCORE.name, SCORE.reads, [].append)
        self.partitions = Faulty.__new__(Faulty)
        self.partitions._held, self.partitions._decider = {0: ScorePartition()}, Decider("EUR", 1)
        self.partitions._environment = cast(Any, Environment(self.quarantines))
        self.loop = AgentLoop(
            SCORE, "nowhere:1", chosen, WorkerMetrics(), Health((SCORE.name,)), cast(Partitions, self.partitions),
            self.quarantines, lambda: None,
        )  # fmt: skip
        self.outputs: list[Output] = cast(Committed, self.loop._session).outputs
        self.quarantines.written = self.outputs
        shutil.rmtree(home, ignore_errors=True)

    def outputs_of(self, topic: Any) -> list[Output]:
        return to(topic, Result(self.outputs))


class Environment:
    """As much of a worker as a replay needs."""

    agent = SCORE.name

    def __init__(self, quarantines: Quarantines) -> None:
        self.quarantines, self.health = quarantines, Health((SCORE.name,))


def test_one_commit_has_the_other_rows_results_and_the_quarantines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, record = Worker(tmp_path / "home", monkeypatch), block(odd=(2, 7))
    worker.loop.work(make_batch([record], None))
    numbers = [
        int(decode_decision(decision.value or b"").transaction_id[1:]) for decision in worker.outputs_of(DECISIONS)
    ]
    assert numbers == [number for number in range(12) if number not in (2, 7)]
    letters = worker.outputs_of(DEAD_LETTERS)
    assert [(reason(letter, "row"), reason(letter, "error")) for letter in letters] == [
        ("2", "set_aside"),
        ("7", "set_aside"),
    ]
    assert [reason(letter, "offset") for letter in letters] == [str(record.offset)] * 2
    messages = read_messages(record.value)
    originals = [bytes(cast(ProfiledTransaction, messages[row]).transaction) for row in (2, 7)]
    assert [letter.value for letter in letters] == originals
    assert len(worker.outputs_of(CONTROL)) == 2

    # A replay skips the same rows, and only those.
    replayed = ScorePartition()
    worker.quarantines.refresh(None)
    (kept,) = worker.quarantines.without([record])
    assert kept.skipped_rows == (2, 7)
    replayed.replay([kept])
    replayed.commit()
    assert replayed.digest() == worker.partitions._held[0].digest()
    forged = msgspec.structs.replace(record, offset=record.offset + 1)
    assert worker.quarantines.without([forged]) == [forged]


def test_rows_count_towards_the_limit_of_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(tmp_path / "home", monkeypatch, quarantine_limit=3)
    worker.loop.work(make_batch([block(odd=(1, 2, 3))], None))
    assert len(worker.outputs_of(DEAD_LETTERS)) == 3
    more = msgspec.structs.replace(block(odd=(5,)), offset=40)
    with pytest.raises(failures.TooManyFailures):
        worker.loop.work(make_batch([more], None))
    assert len(worker.outputs_of(DEAD_LETTERS)) == 3
