"""Workers that are stopped, doubled and robbed of their state or their snapshots: nothing is lost or decided twice."""

import random
import re
import shutil
import signal

import pytest

from schemas.topics import PROFILED, PROGRESS
from tests.helpers.expected import differences, expected_features
from tests.helpers.topics import Cluster, Starter, keys, once, shop

pytestmark = pytest.mark.broker

RESTORED = re.compile(r"(\w+: partition \d+): state restored in [\d.]+ s from (a snapshot|the log alone)")
"""An agent's partition in a worker's log, and what it was restored from."""


def check(cluster: Cluster, bought: dict[tuple[str, str], object]) -> None:
    """One decision for each transaction, with the features that the recorded log gives."""
    decisions = cluster.decisions()
    assert once(decisions)
    assert sorted(keys(decisions)) == sorted(bought)
    assert differences(cluster.features(), expected_features(cluster.read(PROFILED), cluster.read(PROGRESS))) == []


def test_a_worker_goes_on_from_its_snapshots_or_from_the_log_alone(cluster: Cluster, start: Starter) -> None:
    cluster.publish()
    bought = shop(cluster, range(120), seed=1)
    cluster.flush()
    worker = start(cluster.settings)
    worker.until(lambda: len(cluster.decisions()) >= 120)
    reported = worker.output.replace(cluster.settings.topic_prefix, "")
    assert re.search(r"card: assigned accepted-labels \d.*; transactions \d", reported)
    # It begins behind the agents that decide.
    for number in range(cluster.settings.card_partitions):
        worker.until_it_says(f"feedback: partition {number}: state restored")
    # Another one of its name is refused.
    rival = start(cluster.settings)
    assert rival.code() == 1
    assert f"runs already, in process {worker.process.pid}" in rival.output
    assert "--instance" in rival.output
    assert "Traceback" not in rival.output
    assert worker.stop() == 0, worker.output

    snapshots = cluster.settings.data_dir / "snapshots"
    assert [*snapshots.glob("*/*/*.json")]
    bought |= shop(cluster, range(120, 200), seed=2)
    cluster.flush()
    again = start(cluster.settings)
    again.until(lambda: len(cluster.decisions()) >= 200)
    for agent in ("card", "score", "feedback"):
        again.until_it_says(f"{agent}: partition 1: state restored")
        assert f"{agent}: partition 1: state restored in 0.0 s from the log" not in again.output
    # Out of the way first: the worker adds files to a directory that is being emptied.
    shutil.rmtree((cluster.settings.data_dir / "state").rename(cluster.settings.data_dir / "deleted"))
    assert again.code() == 1
    assert "was removed while the worker ran; nothing is lost" in again.output
    assert "start the worker again" in again.output
    assert "Traceback" not in again.output

    noise = random.Random(5)
    for path in [path for path in snapshots.rglob("*") if path.is_file()]:
        content = bytearray(path.read_bytes())
        content[noise.randrange(len(content))] ^= 0x40
        path.write_bytes(content)
    bought |= shop(cluster, range(200, 260), seed=3)
    cluster.flush()
    last = start(cluster.settings)
    last.until(lambda: len(cluster.decisions()) >= 260)
    assert "is not used (damaged)" in last.output
    # A partition that the group took away for a moment may come back from a snapshot that this worker made since.
    first = {part.group(1): part.group(2) for part in reversed([*RESTORED.finditer(last.output)])}
    assert first
    assert set(first.values()) == {"the log alone"}
    assert last.stop() == 0, last.output
    check(cluster, bought)


def test_a_second_signal_ends_at_once_and_loses_nothing(cluster: Cluster, start: Starter) -> None:
    cluster.publish()
    bought = shop(cluster, range(1_500), seed=1)
    cluster.flush()
    worker = start(cluster.settings, batch_max_records=20)
    worker.until(lambda: len(cluster.decisions()) >= 100)
    worker.process.send_signal(signal.SIGTERM)
    worker.until_it_says("SIGTERM: finishing the batch")
    worker.process.send_signal(signal.SIGTERM)
    assert worker.code() in (0, 128 + signal.SIGTERM), worker.output
    again = start(cluster.settings)
    again.until(lambda: len(cluster.decisions()) >= len(bought))
    assert again.stop() == 0, again.output
    check(cluster, bought)
