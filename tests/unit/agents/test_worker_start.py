"""Work of a worker beside its questions to brokers, and the order in which its agents begin."""

import subprocess
import sys
import threading
from pathlib import Path
from typing import cast

import pytest

import agents.card
from agents import app
from agents.app import WorkerContext
from agents.loop import AgentLoop
from pipeline.engine.card import CardOptions
from pipeline.settings import Settings
from tests.contract.records import RATES

TIMEOUT_S = 30.0


class Loop:
    """Of an agent that holds partitions once it is told so."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, int], int] = {}
        self.looks = threading.Semaphore(0)

    def positions(self) -> dict[tuple[str, int], int]:
        self.looks.release()
        return self.held


@pytest.fixture
def worker(tmp_path: Path) -> WorkerContext:
    return WorkerContext(Settings(data_dir=tmp_path, metrics_port=0))


def test_kernels_are_loaded_for_the_agents_that_run(
    worker: WorkerContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[CardOptions] = []
    monkeypatch.setattr(agents.card, "compile_kernels", loaded.append)
    worker._rates = RATES
    worker._prepare()
    assert [options.rates for options in loaded] == [RATES]
    other = WorkerContext(Settings(data_dir=tmp_path, metrics_port=0, agents="score,learn"))
    other._rates = RATES
    other._prepare()
    assert len(loaded) == 1


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
    """pandas and scipy take a quarter of a worker's imports, and a restart waits for those."""
    look = "import sys, agents.app; print(*sorted({'lightgbm', 'pandas', 'river', 'scipy.special'} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", look], check=True, capture_output=True, text=True).stdout
    assert loaded.split() == []
