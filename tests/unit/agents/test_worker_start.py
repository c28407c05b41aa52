"""Work of a worker beside its questions to brokers, and the order in which its agents begin."""

import subprocess
import sys
import threading
from collections.abc import Collection
from pathlib import Path
from typing import cast

import pytest

from agents import app, preparation
from agents.app import WorkerContext
from agents.loop import AgentLoop
from agents.topology import CARD, LEARN
from agents.watches import UndecidedWatch
from pipeline.settings import Settings
from schemas.money import RateTable
from tests.contract.records import RATES
from tests.helpers.waiting import TIMEOUT_S, eventually


class Loop:
    """Of an agent that holds partitions once it is told so."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, int], int] = {}
        self.looks = threading.Semaphore(0)
        self.member_id = "this"

    def positions(self) -> dict[tuple[str, int], int]:
        self.looks.release()
        return self.held


@pytest.fixture
def worker(tmp_path: Path) -> WorkerContext:
    return WorkerContext(Settings(data_dir=tmp_path, metrics_port=0))


class Undecided:
    """A watch that nobody asks."""

    def follow(self, agent: str, positions: object) -> None:
        """Follow nothing."""


def test_no_agent_begins_before_its_kernels_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    release = threading.Event()

    def compiling(_settings: Settings, rates: RateTable, _directory: Path, agents: Collection[str]) -> None:
        assert (rates, [*agents]) == (RATES, ["score"])
        assert release.wait(TIMEOUT_S)
        order.append("compiled")

    def loop(*_: object) -> AgentLoop:
        order.append("loop")
        return cast(AgentLoop, Loop())

    worker = app.create_app(Settings(data_dir=tmp_path, metrics_port=0, agents="score"))._worker
    worker._directories["score"] = tmp_path / "score"
    worker._rates, worker._undecided = RATES, cast(UndecidedWatch, Undecided())
    monkeypatch.setattr(preparation, "prepare_kernels", compiling)
    monkeypatch.setattr(app, "AgentLoop", loop)
    monkeypatch.setattr(app, "Quarantines", lambda *_: None)
    monkeypatch.setattr(worker, "partitions", lambda *_: None)
    monkeypatch.setattr(worker, "connect", threading.Thread(target=worker._prepare, daemon=True).start)
    beginning = threading.Thread(target=worker._channels[0]._new_loop)
    beginning.start()
    eventually(lambda: order or "compiles its kernels" in worker.health._step)
    assert order == []
    release.set()
    beginning.join(TIMEOUT_S)
    assert order == ["compiled", "loop"]
    # The next process of this worker leaves the group for it.
    assert (tmp_path / "score.member").read_text() == "this\n"


def test_kernels_that_cannot_be_compiled_stop_the_agents(
    worker: WorkerContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space is left for compiled code")

    monkeypatch.setattr(preparation, "prepare_kernels", fail)
    monkeypatch.setattr(app, "CRITICAL_FIRST_S", 0.0)
    worker._rates = RATES
    worker._directories |= dict.fromkeys(worker._settings.agent_names, tmp_path)
    worker._prepare()
    for spec in (CARD, LEARN):
        with pytest.raises(OSError, match="no space"):
            worker._await_prepared(spec)


def test_agents_that_no_alert_waits_for_are_prepared_once_the_others_hold_partitions(
    worker: WorkerContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: list[list[str]] = []

    def prepare(_settings: Settings, _rates: RateTable, _directory: Path, agents: Collection[str]) -> None:
        prepared.append([*agents])

    monkeypatch.setattr(app, "CRITICAL_FIRST_S", TIMEOUT_S)
    monkeypatch.setattr(preparation, "prepare_kernels", prepare)
    worker._rates = RATES
    worker._directories |= dict.fromkeys(worker._settings.agent_names, tmp_path)
    preparing = threading.Thread(target=worker._prepare)
    preparing.start()
    worker._await_prepared(CARD)
    loop = Loop()
    worker._loops |= dict.fromkeys(("card", "score"), cast(AgentLoop, loop))
    assert loop.looks.acquire(timeout=TIMEOUT_S)
    assert prepared == [["card", "score"]]
    loop.held["transactions", 0] = 0
    worker._await_prepared(LEARN)
    preparing.join(TIMEOUT_S)
    assert prepared == [["card", "score"], ["label", "feedback", "learn"]]


def test_agents_that_no_alert_waits_for_begin_once_the_others_hold_partitions(
    worker: WorkerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "CRITICAL_FIRST_S", TIMEOUT_S)
    card, score = Loop(), Loop()
    card.held["transactions", 0] = 0
    waiting = threading.Thread(target=worker._await_critical)
    waiting.start()
    worker._loops["card"] = cast(AgentLoop, card)
    worker._loops["score"] = cast(AgentLoop, score)
    for _ in range(2):
        assert score.looks.acquire(timeout=TIMEOUT_S)
    assert waiting.is_alive()
    score.held["profiled", 0] = 7
    waiting.join(TIMEOUT_S)
    assert not waiting.is_alive()


@pytest.mark.parametrize("ends", ["nobody comes", "the worker ends", "none is latency-critical"])
def test_they_wait_no_longer_than_they_must(
    worker: WorkerContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    monkeypatch.setattr(app, "CRITICAL_FIRST_S", 0.0 if ends == "nobody comes" else 1e9)
    if ends == "none is latency-critical":
        worker = WorkerContext(Settings(data_dir=tmp_path, metrics_port=0, agents="feedback,learn"))
    if ends == "the worker ends":
        worker._closing.set()
    worker._await_critical()


def test_a_worker_imports_no_library_that_it_does_not_need() -> None:
    """A restart waits for imports, those of the agents that alerts wait for included."""
    heavy = {"cryptography", "lightgbm", "pandas", "river", "scipy.special"}
    look = (
        "import sys; from pipeline.commands.worker import _leave_pandas_out; _leave_pandas_out(); "
        f"import agents.app, agents.card, agents.score; print(*sorted({heavy} & set(sys.modules)))"
    )
    loaded = subprocess.run([sys.executable, "-c", look], check=True, capture_output=True, text=True).stdout
    assert loaded.split() == []


def test_settings_import_nothing_that_computes() -> None:
    """Every command imports them, `fraud-pipeline topics` and nearly nothing else."""
    look = "import sys, pipeline.settings; print(*sorted({'numba', 'numpy', 'scipy'} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", look], check=True, capture_output=True, text=True).stdout
    assert loaded.split() == []
