"""What an agent's unit of work does with errors: which end the worker, and which set a record aside."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from agents import failures, loop
from agents.failures import TooManyFailures
from agents.loop import AgentLoop, Partitions
from agents.partitions import Environment, KernelPartitions, StateLocation
from agents.topology import CARD, FEEDBACK, LEARN, SCORE, AgentSpec
from pipeline.engine.cards.card_partition import CardPartition
from pipeline.engine.encoding.blocks import KernelChanged, KernelMismatch
from pipeline.engine.partition_state.state import LoadedState, MemoryStore, StoreError
from pipeline.engine.records.results import Result
from pipeline.features.state_columns import MemoryStorage
from pipeline.kafka.records.batch import Batch, make_batch
from pipeline.kafka.session.quarantine import Quarantines
from pipeline.observability.health import Health
from pipeline.observability.metrics import WorkerMetrics
from pipeline.settings import Settings
from pipeline.state.store import MINIMUM_BYTES, RocksStore, StoreMemory
from schemas.messages import ProcessingConfig
from schemas.records import Output, Record
from schemas.topics import CONTROL, DEAD_LETTERS, TRANSACTIONS
from tests.helpers.logs import Log, after, reason, to, transaction
from tests.unit.engine.test_engine_card import NOW, options


class Committed:
    """A session without a broker: what is committed is kept."""

    assigned: Sequence[tuple[str, int]] = ()
    damaged: Sequence[tuple[str, int]] = ()

    def __init__(self, *_: Any, **__: Any) -> None:
        self.outputs: list[Output] = []
        self.batches: list[Batch | None] = []
        self.rests_s: list[float] = []
        self.rewound: list[Batch] = []
        self.halted: list[Batch] = []

    def start(self) -> None:
        """There is no group."""

    def rest(self, until_s: float) -> None:
        self.rests_s.append(max(0.0, until_s - time.monotonic()))

    def poll(self, _: float) -> Batch | None:
        return self.batches.pop(0)

    def lag(self) -> dict[tuple[str, int], int]:
        return {}

    def commit(self, batch: Batch, outputs: Sequence[Output]) -> None:
        self.outputs += outputs

    def rewind(self, batch: Batch) -> None:
        self.rewound.append(batch)

    def halt(self, batch: Batch) -> None:
        self.halted.append(batch)

    def close(self, *, release: bool = True) -> None:
        self.released = release


class Known(Quarantines):
    """Quarantines whose control records are given by hand instead of read from ``control``."""

    def __init__(self, settings: Settings) -> None:
        super().__init__("nowhere:1", settings, "card", CARD.reads, [].append)
        self.refreshed = 0
        self.written: list[Output] = []
        """What this worker has committed."""

    def refresh(self, waiting: Callable[[], None]) -> None:
        waiting()
        self.refreshed += 1
        self.hear(Result(self.written))

    def hear(self, result: Result) -> None:
        """Take in what another worker has written."""
        self._take([Record("control", 0, 0, 0, output.key, output.value, ()) for output in to(CONTROL, result)])


class One(KernelPartitions[CardPartition]):
    """Card partition 0, whose kernel is given."""

    def __init__(self, state: CardPartition, quarantines: Quarantines, home: Path) -> None:
        super().__init__(
            Environment(
                agent="card", settings=Settings(), directory=home / "agent", store_memory=cast(StoreMemory, None),
                quarantines=quarantines, snapshots=None, metrics=WorkerMetrics(), health=Health(("card",)),
                **dict.fromkeys(("rates", "mapping", "published_files", "models", "other_kernels"), cast(Any, None)),
            )
        )  # fmt: skip
        self._held[0] = state
        self.failing: Callable[[Record], bool] = lambda record: False

    def new(self, partition: int, location: StateLocation, loaded: LoadedState | None) -> CardPartition:
        raise NotImplementedError

    def replay_into(self, state: CardPartition, records: Sequence[Record], config: ProcessingConfig | None) -> None:
        state.process(records, None)

    def process(self, records: Sequence[Record], now: datetime) -> Result:
        if any(self.failing(record) for record in records):
            raise ArithmeticError("this record cannot be worked on")
        return self._held[0].process(records, now)


class Worker:
    """The real unit of work, on one partition."""

    def __init__(
        self,
        state: CardPartition,
        home: Path,
        monkeypatch: pytest.MonkeyPatch,
        spec: AgentSpec = CARD,
        **settings: Any,
    ) -> None:
        monkeypatch.setattr(loop, "Session", Committed)
        monkeypatch.setattr(failures, "RETRY_PAUSE_S", 0.0)
        chosen = Settings(**settings)
        self.quarantines = Known(chosen)
        self.partitions = One(state, self.quarantines, home)
        metrics, health = WorkerMetrics(), Health((spec.name,))
        self.source = AgentLoop(
            spec,
            "nowhere:1",
            chosen,
            metrics,
            health,
            cast(Partitions, self.partitions),
            self.quarantines,
            lambda: None,
        )
        self.session = cast(Committed, self.source._session)
        self.quarantines.written = self.session.outputs

    def aside(self) -> list[Output]:
        return [output for output in self.session.outputs if output.topic is DEAD_LETTERS]


def bought(count: int, first: int = 0) -> list[Record]:
    log = Log(TRANSACTIONS)
    for number in range(first + count):
        at = after(minutes=number)
        log.append(transaction(number, at, card_id=f"c{number}"), at)
    return log.records[first:]


def in_memory() -> CardPartition:
    return CardPartition(options(), MemoryStorage(), MemoryStore())


def test_damage_in_a_store_ends_the_worker_and_sets_nothing_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = StoreMemory(MINIMUM_BYTES)
    store = RocksStore(tmp_path / "first", memory=memory)
    state = CardPartition(options(), MemoryStorage(), store)
    records = bought(400)
    for _ in range(2):
        state.process(records, NOW)
        state.commit()
    frozen = Path(store.freeze())
    state.close()
    for table in frozen.glob("*.sst"):
        damaged = bytearray(table.read_bytes())
        damaged[: len(damaged) // 2] = bytes(len(damaged) // 2)
        # Beside its place first: the frozen file may be a link.
        table.unlink()
        table.write_bytes(damaged)
    damaged_state = CardPartition(
        options(), MemoryStorage(), RocksStore(tmp_path / "second", frozen=frozen, memory=memory)
    )
    worker = Worker(damaged_state, tmp_path, monkeypatch, quarantine_after=1)
    with pytest.raises(StoreError) as raised:
        worker.source.work(make_batch(records, None))
    assert "nothing is committed of its batch, transactions partition 0 offsets 0 to 399" in raised.value.__notes__[0]
    assert worker.session.outputs == []


def test_quarantines_are_counted_over_all_workers_and_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others, records = Known(Settings()), bought(6)
    worker = Worker(in_memory(), tmp_path, monkeypatch, quarantine_after=1, quarantine_limit=3)
    now = datetime.now(after().tzinfo)
    # Two within a day, by a worker that has ended since; one before; and one of another agent.
    for record, age in (
        (records[0], timedelta(hours=1)),
        (records[1], timedelta(hours=23)),
        (records[2], timedelta(2)),
    ):
        worker.quarantines.hear(others.outputs(record, ArithmeticError(), now - age))
    another = Quarantines("nowhere:1", Settings(), "feedback", FEEDBACK.reads, [].append)
    worker.quarantines.hear(another.outputs(records[3], ArithmeticError(), now))
    worker.partitions.failing = lambda record: record.offset >= 4
    worker.source.work(make_batch([records[4]], None))
    assert len(worker.aside()) == 1
    with pytest.raises(TooManyFailures, match=r"3 records were quarantined within a day.*raises the limit"):
        worker.source.work(make_batch([records[5]], None))
    assert len(worker.aside()) == 1
    assert worker.quarantines.refreshed == 2


def test_blocks_of_another_kernel_are_quarantined_at_once_and_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may write to ``profiled`` could end every worker for a day."""
    worker, tried = Worker(in_memory(), tmp_path, monkeypatch, quarantine_after=3, quarantine_limit=1), list[int]()

    def fail(record: Record) -> bool:
        tried.append(record.offset)
        raise KernelMismatch(f"offset {record.offset} was profiled by kernel 0-other")

    worker.partitions.failing = fail
    records = bought(21)
    for record in records:
        worker.source.work(make_batch([record], None))
    assert tried == [*range(21)]
    assert [output.value for output in worker.aside()] == [record.value for record in records]
    assert reason(worker.aside()[0], "message") == "KernelMismatch: offset 0 was profiled by kernel 0-other"
    # What may be the program's fault counts from the first one on.
    worker.partitions.failing = lambda _: True
    first, second = ([record] for record in bought(2))
    for failing in (first, first, first, second, second):
        worker.source.work(make_batch(failing, None))
    with pytest.raises(TooManyFailures, match="1 records were quarantined"):
        worker.source.work(make_batch(second, None))


def test_a_block_of_the_card_agent_s_other_kernel_halts_its_partition_and_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(in_memory(), tmp_path, monkeypatch, quarantine_after=1)

    def fail(record: Record) -> bool:
        if record.offset == 2:
            raise KernelMismatch("one of them is of another kernel") if several else KernelChanged("offset 2 is")
        return False

    def process(records: Sequence[Record], now: datetime) -> Result:
        nonlocal several
        several = len(records) > 1
        return process_one(records, now)

    several, process_one = False, worker.partitions.process
    worker.partitions.failing = fail
    monkeypatch.setattr(worker.partitions, "process", process)
    worker.source.work(make_batch(bought(6), None))
    assert not worker.aside()
    assert [batch.starts for batch in worker.session.halted] == [{("transactions", 0): 2}]
    # What follows is read by whoever decides it; what stands before it is decided.
    assert [batch.starts["transactions", 0] for batch in worker.session.rewound] == [3]
    assert len(worker.session.outputs) == 2


def test_a_record_of_which_processes_have_died_is_quarantined_without_being_worked_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, worked = Worker(in_memory(), tmp_path, monkeypatch, quarantine_after=3), list[Record]()
    worker.partitions.failing = lambda record: bool(worked.append(record))
    first, second = bought(2)
    worker.source.work(replace(make_batch([first], None), deaths=2))
    assert worked == [first]
    assert not worker.aside()
    worker.source.work(replace(make_batch([second], None), deaths=3))
    assert worked == [first]
    (dead_letter,) = worker.aside()
    assert dead_letter.value == second.value
    assert reason(dead_letter, "message").startswith("ProcessDied: 3 processes died")


@pytest.mark.parametrize(("error", "released"), [(MemoryError, False), (OSError, True)])
def test_a_worker_that_runs_out_of_memory_counts_as_one_that_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception], released: bool
) -> None:
    def fail(_: Record) -> bool:
        raise error

    worker = Worker(in_memory(), tmp_path, monkeypatch)
    worker.partitions.failing = fail
    with pytest.raises(error):
        worker.source.work(make_batch(bought(1), None))
    worker.source.close()
    assert worker.session.released is released


def test_a_restore_replays_no_batch_of_which_all_was_quarantined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Live its batch was never processed; a kernel drops pending labels and forgets even for an empty batch."""
    worker = Worker(in_memory(), tmp_path, monkeypatch)
    quarantines = Quarantines("nowhere:1", Settings(), "score", SCORE.reads, [].append)
    worker.partitions._environment.quarantines = quarantines
    (record,) = bought(1)
    outputs = to(CONTROL, quarantines.outputs(record, ArithmeticError(), NOW))
    quarantines._take([Record("control", 0, 0, 0, output.key, output.value, ()) for output in outputs])
    replayed: list[Sequence[Record]] = []
    monkeypatch.setattr(worker.partitions, "replay_into", lambda _, records, config: replayed.append(records))
    others = bought(2, first=1)
    worker.partitions.replay(0, [record], None)
    worker.partitions.replay(0, [record, *others], None)
    assert replayed == [others]


@pytest.mark.parametrize(("spec", "rests"), [(CARD, False), (SCORE, False), (FEEDBACK, True), (LEARN, True)])
def test_agents_that_no_alert_waits_for_rest_between_batches_that_are_not_full(
    spec: AgentSpec, rests: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(in_memory(), tmp_path, monkeypatch, spec, feedback_interval_s=60.0, batch_max_records=3)
    full, small = make_batch(bought(3), None), make_batch(bought(2), None)
    worker.session.batches = [full, small, None, None]
    for expected in (full, small, None, None):
        assert worker.source.poll() is expected
    first, after_full, *later = worker.session.rests_s
    assert (first, after_full) == (0.0, 0.0)
    assert [rest_s > 50 for rest_s in later] == [rests, rests]
