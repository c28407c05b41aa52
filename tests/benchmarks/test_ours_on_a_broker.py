"""Both of this project's entries start, decide every transaction of a small input, and pass their checks."""

import sys
import uuid
from pathlib import Path

import pytest

from pipeline.broker import EmbeddedBroker
from tests.benchmarks import forests
from tests.benchmarks.engines import prepare_one_hop, process
from tests.benchmarks.job import prepare
from tests.benchmarks.ours import job
from tests.benchmarks.running import Bench, Command, Prepared
from tests.helpers.waiting import TIMEOUT_S

pytestmark = pytest.mark.broker
RECORDS = 3_000


@pytest.fixture
def bench(broker: EmbeddedBroker, tmp_path: Path) -> Bench:
    return Bench(broker.bootstrap_servers, broker.pid, tmp_path, sys.executable, "", TIMEOUT_S)


def appended(bench: Bench, run: str, prepared: Prepared, command: Command) -> int:
    """The number of decisions that an engine wrote, all being right."""
    found, samples = bench.answers(run, command, prepared)
    assert samples[-1].engine_cpu_s > 0
    assert samples[-1].engine_rss_bytes > 0
    return len(found)


def test_job_a_on_this_engine(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("TREES", 5), ("TRAINING_RECORDS", RECORDS), ("RIVER_EXAMPLES", 500)):
        monkeypatch.setattr(prepare, name, value)
    prepare.write_job(bench.workdir)
    prepared = prepare_one_hop(bench, "", RECORDS)
    assert appended(bench, f"t{uuid.uuid4().hex[:12]}", prepared, process("ours.one_hop")) == RECORDS


def test_job_b_on_the_pipeline(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(forests, "BUILD", tmp_path)
    monkeypatch.setattr(job, "champion", lambda: forests.champion(5, 7, cards=100))
    run = f"t{uuid.uuid4().hex[:12]}"
    prepared = job.prepare_pipeline(bench, run, RECORDS, partitions=2)
    command = process("ours.pipeline", "--workers", "2", "--partitions", "2")
    assert appended(bench, run, prepared, command) == prepared.decisions
