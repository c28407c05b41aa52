"""Runs that start all they need, as a user starts them: commands in a process and a directory of their own."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
import pytest

from pipeline.settings import Settings
from tests.helpers.worker import ROOT, inherited_environment

POLL_S = 0.05


class Run:
    """A command in a process that works in ``directory``, with its output in files, as behind a pipe.

    ``program`` is an installed ``fraud-pipeline``; without one it is the checkout's.
    """

    def __init__(self, directory: Path, environment: Mapping[str, str], *command: str, program: Path | None) -> None:
        self.directory = directory
        self._output, self._errors = (directory / "stdout").open("wb"), (directory / "stderr").open("wb")
        own = {"FRAUD_PIPELINE_DATA_DIR": "data", "FRAUD_PIPELINE_METRICS_PORT": "0"}
        if program is None:
            own["PYTHONPATH"] = str(ROOT)
        self.process = subprocess.Popen(
            [*([sys.executable, "-m", "pipeline.cli"] if program is None else [program]), *command],
            cwd=directory,
            env={**inherited_environment(), **own, **environment},
            stdout=self._output,
            stderr=self._errors,
        )

    @property
    def output(self) -> str:
        return (self.directory / "stdout").read_text()

    @property
    def errors(self) -> str:
        return (self.directory / "stderr").read_text()

    def wait_for(self, text: str) -> list[psutil.Process]:
        """Wait until it has said ``text``, on however many lines; returns the processes that it has started."""
        while text not in " ".join(self.output.split()):
            try:
                self.process.wait(POLL_S)
            except subprocess.TimeoutExpired:
                continue
            if text in " ".join(self.output.split()):
                break  # the last that it said
            pytest.fail(f"the run ended without {text!r}:\n{self.output}\n{self.errors}")
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self._output.close()
        self._errors.close()


RunStarter = Callable[..., Run]


def on_cluster(settings: Settings) -> dict[str, str]:
    """What tells a run to use the cluster, and the topics, of ``settings``."""
    assert settings.kafka_bootstrap_servers is not None
    return {
        "KAFKA_BOOTSTRAP_SERVERS": settings.kafka_bootstrap_servers,
        "FRAUD_PIPELINE_TOPIC_PREFIX": settings.topic_prefix,
    }


def gone(processes: list[psutil.Process], timeout_s: float = 0) -> bool:
    """Whether all of ``processes`` end within ``timeout_s`` seconds."""
    _, alive = psutil.wait_procs(processes, timeout=timeout_s)
    return not alive
