"""How a worker's process ends, with an app of nothing in it."""

import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0
PROGRAM = """
    import atexit, logging, sys, threading
    import faust
    from agents.app import AgentsOnly
    from agents.stopping import PipelineWorker

    class Nothing(faust.App):
        BootStrategy = AgentsOnly

        async def on_started(self):
            print("started")  # which Faust hands to the log
            if "crash" in sys.argv:
                await self.crash(ValueError("of no use"))

        async def on_stop(self):
            print("closed")

    # As a native client may that is dropped while the interpreter ends.
    atexit.register(threading.Event().wait)
    logging.basicConfig(level="INFO")
    app = Nothing("nothing", broker="kafka://", store="memory://", web_enabled=False, autodiscover=False,
                  datadir=sys.argv[1])
    PipelineWorker(app, shutdown_timeout_s=30.0, loglevel="INFO", quiet=True).execute_from_commandline()
"""


@pytest.fixture
def worker(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(tmp_path), *request.param]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("worker", [()], indirect=True)
def test_a_worker_that_has_closed_ends_whatever_the_interpreter_waits_for(worker: subprocess.Popen[str]) -> None:
    assert worker.stderr is not None
    before = list(takewhile(lambda line: "started" not in line, worker.stderr))
    assert worker.poll() is None, before
    worker.send_signal(signal.SIGTERM)
    _, told = worker.communicate(timeout=PATIENCE_S)
    assert worker.returncode == 0, told
    assert "closed" in told
    assert "did not end in time" not in told


@pytest.mark.parametrize("worker", [("crash",)], indirect=True)
def test_a_worker_that_crashes_says_so_with_its_code(worker: subprocess.Popen[str]) -> None:
    _, told = worker.communicate(timeout=PATIENCE_S)
    assert worker.returncode == 1, told
    assert "of no use" in told
