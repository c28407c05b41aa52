"""How a worker's process ends, with an app of nothing in it."""

import asyncio
import json
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import pytest

from agents import app as agents_app
from agents.stopping import EXIT_LATE
from pipeline.settings import Settings
from tests.helpers.waiting import TIMEOUT_S

ROOT = Path(__file__).parents[3]
PROGRAM = """
    import asyncio, atexit, ctypes, logging, os, signal, sys, threading
    from concurrent.futures import ThreadPoolExecutor
    import faust
    from confluent_kafka import KafkaError
    from agents.app import AgentsOnly
    from agents.stopping import PipelineWorker, end_with_any_thread

    class Nothing(faust.App):
        BootStrategy = AgentsOnly

        async def on_first_start(self):
            await super().on_first_start()
            end_with_any_thread()

        async def on_started(self):
            print("started")  # which Faust hands to the log
            if "crash" in sys.argv:
                await self.crash(ValueError("of no use"))
            if "thread" in sys.argv:
                threading.Thread(target=int, args=("of no use",), name="watch").start()
            if "executor" in sys.argv:
                # No `BaseException`, and so nothing that an executor catches for its caller.
                ThreadPoolExecutor(thread_name_prefix="agent-card").submit(
                    ctypes.pythonapi.PyErr_SetObject, ctypes.py_object(KafkaError), ctypes.py_object(KafkaError(-196))
                )

        async def on_stop(self):
            if "replaced" in sys.argv:
                os.kill(os.getpid(), signal.SIGTERM)
                while asked:
                    await asyncio.sleep(0)
            if "hang" in sys.argv:
                threading.Event().wait()
            if "stuck" in sys.argv:
                # As a native client may that waits and keeps the interpreter's lock.
                ctypes.PyDLL(None).pause()
            print("closed")

    # As a native client may that is dropped while the interpreter ends.
    atexit.register(threading.Event().wait)
    logging.basicConfig(level="INFO")
    app = Nothing("nothing", broker="kafka://", store="memory://", web_enabled=False, autodiscover=False,
                  datadir=sys.argv[1])
    timeout_s = 0.5 if {"hang", "stuck"} & {*sys.argv} else 30.0
    asked = [True]
    PipelineWorker(
        app, shutdown_timeout_s=timeout_s, ends_for_good=lambda: "replaced" in sys.argv and asked.pop(),
        loglevel="INFO", quiet=True,
    ).execute_from_commandline()
"""


FAILING = """
    import errno, sys
    from agents.app import FraudApp, WorkerContext
    from agents.channel import BatchChannel, register
    from agents.stopping import PipelineWorker
    from pipeline.observability.logs import logging_config
    from pipeline.settings import Settings

    class Loop:
        def poll(self):
            if "bug" in sys.argv:
                raise KeyError("card-4711")
            raise OSError(errno.ENOSPC, "No space left on device", "/data/state")

        def stop(self):
            pass

        def close(self):
            self.poll()

    settings = Settings(data_dir=sys.argv[1], log_format="json" if "json" in sys.argv else "text")
    context = WorkerContext(settings)
    context.bootstrap = "connected"  # which makes `connect` return
    app = FraudApp("failing", context, broker="kafka://", store="memory://", web_enabled=False, autodiscover=False,
                   datadir=sys.argv[1], logging_config=logging_config(settings))
    for name in ("card", "score"):
        channel = BatchChannel(app, Loop, name)
        context._channels.append(channel)
        register(app, channel)
    PipelineWorker(app, shutdown_timeout_s=30.0, quiet=True).execute_from_commandline()
"""


def failing(tmp_path: Path, *arguments: str) -> list[str]:
    """Return the output of a worker whose agents fail; it ends with code 1."""
    command = [sys.executable, "-c", textwrap.dedent(FAILING), str(tmp_path), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 1, done.stderr
    return (done.stdout + done.stderr).splitlines()


def test_a_full_disk_is_reported_once_and_without_a_traceback(tmp_path: Path) -> None:
    reported = failing(tmp_path)
    assert not [line for line in reported if "Traceback" in line or line.startswith(" ")]
    (reason,) = (line for line in reported if "cannot go on" in line)
    assert "/data/state: No space left on device: free space there" in reason
    # The other agent may fail in the same moment, and each tells that it could not close.
    assert len(reported) <= 4, reported


def test_an_error_of_the_program_keeps_one_traceback(tmp_path: Path) -> None:
    reported = [json.loads(line) for line in failing(tmp_path, "bug", "json")]
    (found,) = (line["message"] for line in reported if "in poll" in line["message"])
    assert "cannot go on: KeyError\n" in found
    # What a record holds may be in the text of an error.
    assert not [line for line in reported if "card-4711" in json.dumps(line)]


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
    _, reported = worker.communicate(timeout=TIMEOUT_S)
    assert worker.returncode == 0, reported
    assert "closed" in reported
    assert "did not end in time" not in reported


@pytest.mark.parametrize("worker", [("replaced",)], indirect=True)
def test_a_signal_to_a_worker_that_would_load_another_image_ends_it_for_good(worker: subprocess.Popen[str]) -> None:
    assert worker.stderr is not None
    assert any("started" in line for line in worker.stderr)
    worker.send_signal(signal.SIGTERM)
    _, reported = worker.communicate(timeout=TIMEOUT_S)
    assert worker.returncode == 0, reported
    assert "SIGTERM: the worker ends, and does not start again" in reported
    assert "closed" in reported


@pytest.mark.parametrize("worker", [("hang",)], indirect=True)
def test_a_worker_that_does_not_end_in_time_says_where_it_stood(worker: subprocess.Popen[str]) -> None:
    assert worker.stderr is not None
    assert any("started" in line for line in worker.stderr)
    worker.send_signal(signal.SIGTERM)
    _, reported = worker.communicate(timeout=TIMEOUT_S)
    assert worker.returncode == EXIT_LATE, reported
    assert "in on_stop" in reported
    assert "did not end in time" in reported


@pytest.mark.parametrize("worker", [("stuck",)], indirect=True)
def test_a_worker_whose_interpreter_stands_still_ends_and_says_where(worker: subprocess.Popen[str]) -> None:
    assert worker.stderr is not None
    assert any("started" in line for line in worker.stderr)
    worker.send_signal(signal.SIGTERM)
    _, reported = worker.communicate(timeout=TIMEOUT_S)
    assert worker.returncode == -signal.SIGALRM, reported
    assert "in on_stop" in reported


@pytest.mark.parametrize("worker", [("crash",)], indirect=True)
def test_a_worker_that_crashes_says_so_with_its_code(worker: subprocess.Popen[str]) -> None:
    _, reported = worker.communicate(timeout=TIMEOUT_S)
    assert worker.returncode == 1, reported
    assert "of no use" in reported


@pytest.mark.parametrize(
    ("worker", "thread"), [(("thread",), "watch"), (("executor",), "agent-card_0")], indirect=["worker"]
)
def test_a_worker_ends_with_any_of_its_threads(worker: subprocess.Popen[str], thread: str) -> None:
    _, reported = worker.communicate(timeout=TIMEOUT_S)
    assert worker.returncode == 1, reported
    assert f"thread {thread} died of " in reported
    assert "Start it again" in reported


def test_the_app_watches_its_threads_from_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched: list[None] = []
    monkeypatch.setattr(agents_app, "end_with_any_thread", lambda: watched.append(None))
    asyncio.run(agents_app.create_app(Settings(data_dir=tmp_path, agents="card")).on_first_start())
    assert watched
