"""Fixtures of the integration tests: topics of their own, and workers that do not outlive their test."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from pipeline.settings import Settings
from tests.helpers.runs import Run, RunStarter
from tests.helpers.tools import tool
from tests.helpers.topics import Cluster, Starter
from tests.helpers.waiting import TIMEOUT_S
from tests.helpers.worker import Worker


@pytest.fixture
def cluster(kafka_settings: Settings) -> Cluster:
    return Cluster(kafka_settings.model_copy(update={"card_partitions": 3, "merchant_partitions": 2}))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Starter]:
    """Starts workers; ends what is left of them."""
    started: list[Worker] = []

    def begin(settings: Settings, *command: str, **changes: Any) -> Worker:
        own = settings.model_copy(update=changes)
        log = tmp_path / f"worker-{len(started)}.log"
        worker = Worker(own, log, command) if command else Worker(own, log)
        started.append(worker)
        return worker

    yield begin
    for worker in started:
        worker.end()


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[RunStarter]:
    """Begins runs in the test's directory; ends what is left of them."""
    begun: list[Run] = []

    def run(*command: str, program: Path | None = None, **environment: str) -> Run:
        begun.append(Run(tmp_path, environment, *command, program=program))
        return begun[-1]

    yield run
    for item in begun:
        item.end()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium, with as much time as everything else has."""
    expect.set_options(timeout=TIMEOUT_S * 1_000)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=tool("chromium", "chromium"), args=["--no-sandbox"])
        yield started
        started.close()
