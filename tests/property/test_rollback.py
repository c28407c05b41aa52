"""Whatever was processed and taken back leaves no trace, and a state that was dumped and loaded goes on alike."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest

from pipeline.engine.cards.card_join import CardJoin
from pipeline.engine.cards.card_partition import CardPartition
from pipeline.engine.cards.transaction_index import StoreIndex
from pipeline.engine.feedback.decision_store import DecisionStore
from pipeline.engine.feedback.feedback import FeedbackPartition
from pipeline.engine.feedback.feedback_kernel import FeedbackKernel
from pipeline.engine.feedback.learn import LearnPartition
from pipeline.engine.partition_state.decision_segments import MemorySegments
from pipeline.engine.partition_state.layout import LAYOUT, OtherLayout
from pipeline.engine.partition_state.pending_items import PendingItems
from pipeline.engine.partition_state.state import LoadedState, MemoryStore, StateDump
from pipeline.engine.partition_state.wait_clock import WaitClock
from pipeline.engine.records.forwarding import forward
from pipeline.engine.records.results import Result
from pipeline.engine.scores.decision_records import read_feature_messages
from pipeline.engine.scores.deduplication import ReadInputs
from pipeline.engine.scores.score import ScorePartition
from pipeline.features.kernel import CardWindows, MerchantWindows
from pipeline.scoring.river_factory import new_learner
from pipeline.scoring.river_learner import LayerLearner
from pipeline.state.segments import FileSegments
from pipeline.state.store import MINIMUM_BYTES, RocksStore, StoreMemory
from schemas.messages import FeedbackConfig
from schemas.records import Output, Record
from schemas.times import US_PER_DAY
from schemas.topics import DECISION_FEATURES, EXAMPLES, PROFILED, REROUTED
from tests.helpers.champion import active, decide
from tests.helpers.logs import START, Log, after
from tests.helpers.memory_columns import MemoryColumn
from tests.helpers.models import example
from tests.unit.engine.test_engine_card import busy_logs, interleaved, options
from tests.unit.engine.test_engine_feedback import happenings

NOW = after(200)
Partition = CardPartition | ScorePartition | FeedbackPartition | LearnPartition
Batches = list[list[Record]]
MODELS = active()


class Kernel(NamedTuple):
    """How to run one of the four."""

    start: Callable[[Any, LoadedState | None], Partition]
    work: Callable[[Any, Sequence[Record]], Result]
    batches: Callable[[np.random.Generator], Batches]


def card_batches(random: np.random.Generator) -> Batches:
    """Transactions, some of them passed on from another partition, and labels."""
    transactions, labels = busy_logs(int(random.integers(1 << 30)), 260)
    found, passed_on = [], Log(REROUTED)
    for bought, reported in interleaved(transactions.records, labels.records, random):
        here, there = [], []
        for record in bought:
            if random.random() < 0.2:
                output = forward(
                    msgspec.structs.replace(record, partition=1, headers=(("trace", None),)), REROUTED, "c1", 0
                )
                passed = passed_on.append(output.value, START, output.key, output.headers)
                there.append(passed)
            else:
                here.append(record)
        found.append([*here, *there, *reported])
    return found


def score_batches(random: np.random.Generator) -> Batches:
    card = CardPartition(options(20, 20), None, MemoryStore())
    log = Log(PROFILED)
    for batch in card_batches(random):
        log.take(card.process(batch, START))
        card.commit()
    return cut(log.records, random)


def feedback_batches(random: np.random.Generator) -> Batches:
    return cut([record for _, record in happenings(random, 250)], random)


def learn_batches(random: np.random.Generator) -> Batches:
    log = Log(EXAMPLES)
    for number in range(150):
        lightgbm = "base" if random.random() < 0.9 else "another"
        log.append(msgspec.json.encode(example(number, lightgbm=lightgbm)))
    return cut(log.records, random)


def cut(records: Sequence[Record], random: np.random.Generator) -> Batches:
    cuts = sorted({0, *random.integers(1, len(records), 30).tolist(), len(records)})
    return [list(records[first:end]) for first, end in pairwise(cuts)]


FEEDBACK = FeedbackConfig(label_horizon_us=20 * US_PER_DAY, maturity_us=15 * US_PER_DAY, negative_sample_rate=0.5)


def learn(state: LearnPartition, records: Sequence[Record]) -> Result:
    """Learning has no outputs but the versions: publish every other batch."""
    result = state.learn(records)
    if records[-1].offset % 2:
        result.outputs.append(Output(PROFILED, None, state.publish().to_payload()))
    return result


KERNELS = {
    "card": Kernel(
        lambda store, loaded: CardPartition(options(10, 10), None, store, loaded),
        lambda state, records: state.process(records, NOW),
        card_batches,
    ),
    "score": Kernel(
        lambda store, loaded: ScorePartition(None, loaded),
        lambda state, records: decide(state, records, MODELS, NOW),
        score_batches,
    ),
    "feedback": Kernel(
        lambda store, loaded: FeedbackPartition(FEEDBACK, store, loaded),
        lambda state, records: state.process(records, NOW),
        feedback_batches,
    ),
    "learn": Kernel(
        lambda store, loaded: LearnPartition(new_learner()),
        learn,
        learn_batches,
    ),
}

DUMPED = [name for name in KERNELS if name != "learn"]
"""Kernels of whose states snapshots are taken."""


class Run:
    """A partition with its store, and the pages of its columns as a writer of snapshots puts them together."""

    def __init__(self, kernel: Kernel, store: Any = None, loaded: LoadedState | None = None) -> None:
        self.kernel, self.store = kernel, store or MemoryStore()
        self.state = kernel.start(self.store, loaded)
        self.columns: dict[str, MemoryColumn] = {}

    def commit(self, records: Sequence[Record]) -> Result:
        result = self.kernel.work(self.state, records)
        self.state.commit()
        return result

    def abort(self, records: Sequence[Record]) -> None:
        self.kernel.work(self.state, records)
        self.state.rollback()

    def dump(self, full: bool = False) -> StateDump:
        dump = self.state.dump(full=full)
        for name, pages in dump.columns.items():
            before = {} if full or name not in self.columns else self.columns[name].pages
            self.columns[name] = MemoryColumn(pages.dtype, pages.items, {**before, **pages.changed})
        return dump

    def loaded_again(self, full: bool = False) -> "Run":
        """A second run, from what a writer of snapshots has of this one."""
        dump = self.dump(full)
        again = Run(self.kernel, MemoryStore(self.store.items().items()), LoadedState(dump.values, dict(self.columns)))
        again.columns = dict(self.columns)
        return again


def own_values(run: Run) -> dict[str, Any]:
    """What the engine itself keeps; windows and segments may differ in layout and hold the same (see the digests)."""
    if isinstance(run.state, LearnPartition):
        return {}
    values: dict[str, Any] = msgspec.msgpack.decode(run.state.dump(full=True).values)
    values.pop("windows", None)
    values.pop("segments", None)
    return values


def comparable(result: Result) -> tuple[Any, ...]:
    return result.outputs, result.counts


def differences(kernel: Kernel, seed: int) -> list[str]:
    """What tells a run with batches that were undone, again and again, from one without."""
    random = np.random.default_rng(seed)
    batches = kernel.batches(random)
    straight, shaken = Run(kernel), Run(kernel)
    found = []
    for number, batch in enumerate(batches):
        for _ in range(int(random.integers(0, 3))):
            # What an abort takes back may have been cut otherwise than what is committed later.
            ahead = [record for part in batches[number : number + int(random.integers(1, 5))] for record in part]
            shaken.abort(ahead[: int(random.integers(1, len(ahead) + 1))])
        if comparable(straight.commit(batch)) != comparable(shaken.commit(batch)):
            found.append(f"batch {number} has other results")
        if number % 8 == 0 and own_values(straight) != own_values(shaken):
            found.append(f"batch {number} leaves other values")
        if number % 8 == 0 and straight.state.digest() != shaken.state.digest():
            found.append(f"batch {number} leaves another digest")
    if straight.store.items() != shaken.store.items():
        found.append("the stores differ")
    if own_values(straight) != own_values(shaken):
        found.append("the values differ")
    if straight.state.digest() != shaken.state.digest():
        found.append("the digests differ")
    return found


@pytest.mark.parametrize("name", DUMPED)
def test_a_dump_of_the_layout_before_is_refused(name: str) -> None:
    run = Run(KERNELS[name])
    dump = run.dump(full=True)
    values = msgspec.msgpack.decode(dump.values)
    older = LoadedState(msgspec.msgpack.encode({**values, "layout": values["layout"] - 1}), dict(run.columns))
    with pytest.raises(OtherLayout, match=f"layout {LAYOUT - 1}, not {LAYOUT}; replay it from the log"):
        run.kernel.start(MemoryStore(), older)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", KERNELS)
def test_what_was_undone_leaves_no_trace(name: str, seed: int) -> None:
    assert differences(KERNELS[name], seed) == []


def nothing(*_: Any, **__: Any) -> None:
    """A rollback that was forgotten."""


def clock_stays(field: str) -> Callable[[Any], None]:
    rollback = CardJoin.rollback

    def forgetful(state: Any) -> None:
        kept = getattr(state.clock, field)
        rollback(state)
        state.clock = state.clock._replace(**{field: kept})

    return forgetful


def field_stays(field: str) -> Callable[[Any], None]:
    rollback = FeedbackKernel.rollback

    def forgetful(state: Any) -> None:
        kept = getattr(state, field)
        rollback(state)
        setattr(state, field, kept)

    return forgetful


FORGOTTEN: dict[str, tuple[str, type, str, Callable[..., Any]]] = {
    "card windows": ("card", CardWindows, "rollback", nothing),
    "card store": ("card", MemoryStore, "rollback", nothing),
    "card index": ("card", StoreIndex, "rollback", nothing),
    "card waiting": ("card", PendingItems, "rollback", nothing),
    "card newest": ("card", CardJoin, "rollback", clock_stays("stream_time_us")),
    "card waited": ("card", CardJoin, "rollback", clock_stays("waited_us")),
    "card wait clock": ("card", WaitClock, "rollback", nothing),
    "card forgotten": ("card", CardJoin, "rollback", clock_stays("first_day")),
    "score windows": ("score", MerchantWindows, "rollback", nothing),
    "score offsets": ("score", ReadInputs, "rollback", nothing),
    "feedback store": ("feedback", MemoryStore, "rollback", nothing),
    "feedback decisions": ("feedback", DecisionStore, "rollback", nothing),
    "feedback segments": ("feedback", MemorySegments, "rollback", nothing),
    "feedback waiting": ("feedback", PendingItems, "rollback", nothing),
    "feedback newest": ("feedback", FeedbackKernel, "rollback", field_stays("_stream_time_us")),
    "feedback wait clock": ("feedback", WaitClock, "rollback", nothing),
    "feedback forgotten": ("feedback", FeedbackKernel, "rollback", field_stays("_first_day")),
    "learn model": ("learn", LayerLearner, "go_back", nothing),
    "learn offsets": ("learn", LearnPartition, "rollback", nothing),
}


@pytest.mark.parametrize("what", FORGOTTEN)
def test_an_undo_that_is_forgotten_shows(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above would notice each part of a state whose rollback is missing."""
    name, kind, method, broken = FORGOTTEN[what]
    monkeypatch.setattr(kind, method, broken)
    assert differences(KERNELS[name], 0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", DUMPED)
def test_a_loaded_dump_goes_on_alike(name: str, seed: int) -> None:
    kernel, random = KERNELS[name], np.random.default_rng(seed)
    batches = kernel.batches(random)
    straight = Run(kernel)
    straight.dump(full=True)
    runs: list[Run] = []
    outputs = 0
    for number, batch in enumerate(batches):
        if number % 8 == 4:
            runs.append(straight.loaded_again(full=number % 16 == 4))
            if len(runs) > 1:
                # What was loaded can be dumped and loaded in its turn.
                runs[0] = runs[0].loaded_again(full=bool(random.random() < 0.5))
        result = straight.commit(batch)
        outputs += len(result.outputs)
        for run in runs:
            run.abort(batch[: 1 + len(batch) // 2])
            assert comparable(run.commit(batch)) == comparable(result)
    assert len(runs) >= 2
    assert outputs > 20 or name == "learn"
    for run in runs:
        assert run.store.items() == straight.store.items()
        assert own_values(run) == own_values(straight)
        assert run.state.digest() == straight.state.digest()


@pytest.mark.parametrize("name", ["card", "feedback"])
def test_a_store_on_disk_does_not_show(name: str, tmp_path: Path) -> None:
    """Files in the place of memory, restored from frozen ones half-way, after batches that were undone."""
    kernel = KERNELS[name]
    memory = StoreMemory(MINIMUM_BYTES)
    batches = kernel.batches(np.random.default_rng(11))
    straight = Run(kernel)
    if name == "feedback":
        kernel = kernel._replace(start=lambda store, loaded: on_files(tmp_path, store, loaded))
    on_disk = Run(kernel, RocksStore(tmp_path / "first", memory=memory))
    on_disk.dump(full=True)
    for number, batch in enumerate(batches):
        if number == len(batches) // 2:
            dump = on_disk.dump()
            assert dump.store is not None
            store = RocksStore(tmp_path / "second", frozen=Path(dump.store), memory=memory)
            on_disk.state.close()
            on_disk = Run(kernel, store, LoadedState(dump.values, on_disk.columns))
            assert on_disk.state.digest() == straight.state.digest()
        on_disk.abort(batch[: 1 + len(batch) // 2])
        assert comparable(on_disk.commit(batch)) == comparable(straight.commit(batch))
    assert dict(on_disk.store.scan(b"", b"\xff")) == dict(straight.store.scan(b"", b"\xff"))
    assert on_disk.state.digest() == straight.state.digest()
    assert (name == "card") == (not list(tmp_path.glob("segments-*/*.segment")))
    on_disk.state.close()


def on_files(home: Path, store: RocksStore, loaded: LoadedState | None) -> FeedbackPartition:
    """Segments on disk, some of them sealed."""
    saved = home / ("first" if loaded is None else "second")
    segments = FileSegments(home / f"segments-{saved.name}", saved, sealed_bytes=4_000)
    return FeedbackPartition(FEEDBACK, store, loaded, segments)


@pytest.mark.parametrize("name", ["card", "feedback"])
def test_a_replay_of_the_recorded_batches_leaves_the_state_and_emits_nothing(name: str) -> None:
    kernel = KERNELS[name]
    batches = kernel.batches(np.random.default_rng(7))
    live, replayed = Run(kernel), Run(kernel._replace(work=lambda state, records: state.process(records, None)))
    for batch in batches[:20]:
        result = live.commit(batch)
        silent = replayed.commit(batch)
        assert (silent.outputs, silent.counts) == ([], result.counts)
    assert replayed.store.items() == live.store.items()
    assert own_values(replayed) == own_values(live)
    assert replayed.state.digest() == live.state.digest()
    replayed.kernel = kernel
    for batch in batches[20:]:
        assert comparable(live.commit(batch)) == comparable(replayed.commit(batch))


@pytest.mark.parametrize("seed", range(3))
def test_batches_do_not_show_in_decisions_whatever_was_undone(seed: int) -> None:
    """The score agent's batches are not recorded: a replay cuts the log as it likes."""
    kernel, random = KERNELS["score"], np.random.default_rng(seed)
    records = [record for batch in kernel.batches(random) for record in batch]
    whole, parts = Run(kernel), Run(kernel)
    expected = whole.commit(records)
    assert len(expected.outputs) > 100
    results = []
    for batch in cut(records, random):
        parts.abort(batch)
        for half in (batch[: len(batch) // 2], batch[len(batch) // 2 :]):
            results.append(parts.commit(half))
    for topic in {output.topic.name for output in expected.outputs}:
        assert records_of(topic, [expected]) == records_of(topic, results)
    replay = Run(kernel._replace(work=lambda state, batch: state.replay(batch) or Result()))
    for batch in cut(records, random):
        replay.commit(batch)
    assert own_values(replay) == own_values(parts) == own_values(whole)
    assert replay.state.digest() == parts.state.digest() == whole.state.digest()


def records_of(topic: str, results: Sequence[Result]) -> list[Any]:
    outputs = [output for result in results for output in result.outputs if output.topic.name == topic]
    if topic == DECISION_FEATURES.name:
        return [(output.partition, row) for output in outputs for row in read_feature_messages(output.value)]
    return outputs
