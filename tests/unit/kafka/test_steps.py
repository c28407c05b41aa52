"""Careful reading without a broker: what is named by a mark before it is read, and when nobody else may be at work."""

from collections.abc import Mapping

import pytest

from pipeline.kafka.cluster.errors import Aborted, TopicError
from pipeline.kafka.cluster.retries import Retries
from pipeline.kafka.readers.replay_reader import RangeReader
from pipeline.kafka.records.batch import Partition
from pipeline.kafka.records.member import Member
from pipeline.kafka.session import steps
from pipeline.kafka.session.attempts import Attempt, Attempts, CarefulStep, Committed, Mark, holder
from pipeline.kafka.session.steps import CarefulReading
from pipeline.settings import Settings
from schemas.records import Record

PARTITION: Partition = ("transactions", 0)


class Session:
    """An agent that holds `PARTITION`, of which others have died."""

    def __init__(self, died: Attempt) -> None:
        retries = Retries("card", lambda: None)
        self.reading = CarefulReading(Member("nowhere:1", Settings(), "card", ()), retries)
        self.reading.plan.assigned(PARTITION, Committed(5, Mark("c", attempt=died)), 100)
        self.positions = {PARTITION: 5}
        self.marks: list[tuple[int, Mark]] = []
        self.fails = False

    def write(self, marks: Mapping[Partition, tuple[int, Mark]]) -> None:
        if self.fails:
            raise Aborted("no broker")
        self.marks += marks.values()

    def poll(self) -> list[int] | None:
        batch = self.reading.poll(self.positions, None, self.write, 0.0)
        return None if batch is None else [record.offset for record in batch.records]


@pytest.fixture(autouse=True)
def read(monkeypatch: pytest.MonkeyPatch) -> list[CarefulStep]:
    """Odd offsets hold records, others marks of transactions; returns the steps that were read."""
    asked: list[CarefulStep] = []

    def from_log(_: CarefulReading, step: CarefulStep) -> list[Record]:
        asked.append(step)
        odd = (at for at in range(step.start, step.attempt.end) if at % 2)
        return [Record("transactions", 0, at, 0, None, b"", ()) for at in odd]

    monkeypatch.setattr(CarefulReading, "_read", from_log)
    return asked


def test_a_step_is_named_by_a_mark_before_it_is_read(read: list[CarefulStep]) -> None:
    session = Session(Attempt(9, size=2))
    session.fails = True
    with pytest.raises(Aborted):
        session.poll()
    assert not read
    session.fails = False
    assert session.poll() == [5]
    assert session.marks[0][0] == 5
    assert session.marks[0][1].attempt == Attempt(6, 1)
    session.reading.end_step()


def test_marks_of_transactions_are_committed_as_a_batch_without_records() -> None:
    session = Session(Attempt(9, size=2))
    assert session.poll() == [5]
    assert session.poll() == []
    assert session.positions == {PARTITION: 7}
    assert session.poll() == [7]
    assert session.poll() == []
    assert session.reading.plan.active is True
    assert session.poll() is None
    assert session.reading.plan.active is False


def test_no_two_agents_of_a_process_are_in_a_step() -> None:
    first, second = Session(Attempt(9, size=2)), Session(Attempt(9, size=2))
    assert first.poll() == [5]
    assert second.poll() is None
    assert second.reading.plan.active
    assert not second.marks
    first.reading.end_step()
    assert second.poll() == [5]
    second.reading.end_step()


def test_what_a_step_cannot_read_is_read_as_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: RangeReader, __: int) -> list[Record]:
        raise TopicError("damaged")

    monkeypatch.undo()
    monkeypatch.setattr(steps.RangeReader, "read_to", fail)
    session = Session(Attempt(9, size=2))
    assert session.poll() is None
    assert session.reading.plan.active is False
    assert session.positions == {PARTITION: 5}
    assert not steps._ALONE.locked()


@pytest.mark.parametrize("instance", ["worker-2", "team/worker-2", "w"])
def test_a_mark_names_the_instance_that_held_the_partition(instance: str) -> None:
    retries = Retries("card", lambda: None)
    reading = CarefulReading(Member("nowhere:1", Settings(instance=instance), "card", ()), retries)
    commit = reading.new_name()
    assert holder(Mark(commit)) == holder(Mark(commit, attempt=Attempt(7))) == instance


@pytest.mark.parametrize("mark", [None, Mark("w/s/1", released=True), Mark("other"), Mark()])
def test_nobody_is_named_who_released_the_partition_or_wrote_no_mark(mark: Mark | None) -> None:
    assert holder(mark) == ""


def test_who_holds_a_partition_is_named_though_there_is_nothing_to_read() -> None:
    plan = Attempts(2_000)
    assert plan.assigned(PARTITION, Committed(5, Mark("dead/1/2")), 5) is None
    assert plan.unmarked == {PARTITION: (5, None)}
    plan.begin_usual()
    assert not plan.active
