"""The metrics as Prometheus reads them, from the endpoint."""

import math
import re
import socket
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from agents.counts import COUNTED, COUNTED_BY_AGENT, REPEATED
from pipeline.observability.endpoint import EndpointError
from pipeline.observability.metric_declarations import WEBHOOK_METRICS, WORKER_METRICS
from pipeline.observability.metrics import LATENCY, ArrayHistogram, WorkerMetrics
from tests.helpers.waiting import TIMEOUT_S

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("agents", "pipeline")
OF_HEALTH = {"broker_unreachable_seconds", "agent_state", "ready"}
"""Gauges that are read when Prometheus asks."""
COUNTERS, GAUGES, HISTOGRAMS = (
    {
        name: metric.labels.split()
        for name, metric in WORKER_METRICS.items()
        if metric.kind == kind and name not in {LATENCY, *OF_HEALTH}
    }
    for kind in ("counter", "gauge", "histogram")
)
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def metrics() -> Iterator[WorkerMetrics]:
    worker = WorkerMetrics(port=0)
    yield worker
    worker.stop()


def scrape(port: int) -> Samples:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=TIMEOUT_S) as response:
        text = response.read().decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def sample(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((f"fraud_pipeline_{name}", frozenset(labels.items())))


def test_what_agents_count_is_what_is_served(metrics: WorkerMetrics) -> None:
    values = {name: tuple(f"{label}-value" for label in labels) for name, labels in (COUNTERS | GAUGES).items()}
    for name in COUNTERS:
        metrics.count(name, *values[name], by=3)
        metrics.count(name, *values[name])
    for name in GAUGES:
        metrics.show(name, 7, *values[name])
    metrics.observe("batch_records", 150, "score")
    with metrics.stage("score", "commit"):
        pass
    served = scrape(metrics.start())
    assert {name for name, _ in served if name.endswith("_created")} == set()
    for name, labels in (COUNTERS | GAUGES).items():
        given = dict(zip(labels, values[name], strict=True))
        assert sample(served, name if name in GAUGES else f"{name}_total", **given) == (7 if name in GAUGES else 4)
    assert sample(served, "batch_records_bucket", agent="score", le="100.0") == 0
    assert sample(served, "batch_records_bucket", agent="score", le="200.0") == 1
    assert sample(served, "stage_seconds_count", agent="score", stage="commit") == 1


def test_something_counts_every_metric_and_nothing_else() -> None:
    """One that nothing counts stays at 0."""
    paths = [path for name in PACKAGES for path in (ROOT / name).rglob("*.py")]
    text = "".join(path.read_text(encoding="utf-8") for path in paths)
    declared = COUNTERS | GAUGES | HISTOGRAMS
    named = {name for name in declared if re.search(rf'\.(?:count|show|observe)\(\s*"{name}"', text)}
    by_kind = {*COUNTED.values(), *COUNTED_BY_AGENT.values(), "duplicates", "redelivered"}
    assert named | by_kind | {"prequential_auc"} == {*declared}
    for method, known in (("count", COUNTERS), ("show", GAUGES), ("observe", HISTOGRAMS)):
        assert set(re.findall(rf'metrics\.{method}\(\s*"(\w+)"', text)) <= known.keys() | WEBHOOK_METRICS.keys()
    assert all(f'"{name}"' in text.partition("class Webhook")[2] for name in WEBHOOK_METRICS)


def test_agents_count_what_kernels_count() -> None:
    """A kind that an agent does not hand on is on no metric; one that no kernel counts leaves its metric at 0."""
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "pipeline").rglob("*.py")]
    counted = {kind for text in texts for kind in re.findall(r"counts\[\"(\w+)\", ", text)}
    # Of accepted transactions the decisions are a metric.
    assert counted - {"accepted"} == {*COUNTED, *COUNTED_BY_AGENT, REPEATED}


def test_state_and_its_snapshots_are_reported_until_the_partition_goes(metrics: WorkerMetrics) -> None:
    metrics.state_restored("card", 0, source="snapshot", seconds=1.5, records=70, snapshot_at_s=1_000.0)
    metrics.state_restored("card", 1, source="log", seconds=40.0, records=900)
    metrics.snapshot_written("card", 0, size_bytes=2_048, seconds=0.2, taken_at_s=1_060.0)
    metrics.count("snapshots_failed", "card")
    metrics.count("snapshots_refused", "card", "damaged")
    metrics.show("store_entries", 12, "card", 0)
    metrics.show("store_bytes", 4_096, "card", 0)
    port = metrics.start()
    served = scrape(port)
    assert sample(served, "restore_seconds_count", agent="card", source="snapshot") == 1
    assert sample(served, "restore_seconds_sum", agent="card", source="log") == 40
    assert sample(served, "records_replayed_total", agent="card") == 970
    assert sample(served, "snapshots_written_total", agent="card") == 1
    assert sample(served, "snapshots_failed_total", agent="card") == 1
    assert sample(served, "snapshots_refused_total", agent="card", reason="damaged") == 1
    assert sample(served, "snapshot_seconds_count", agent="card") == 1
    assert sample(served, "snapshot_bytes", agent="card", partition="0") == 2_048
    assert sample(served, "snapshot_timestamp_seconds", agent="card", partition="0") == 1_060
    without = sample(served, "snapshot_timestamp_seconds", agent="card", partition="1")
    assert without is not None
    assert abs(without - time.time()) < 60
    assert sample(served, "store_entries", agent="card", partition="0") == 12
    assert sample(served, "store_bytes", agent="card", partition="0") == 4_096
    metrics.forget_state("card", 0)
    metrics.forget_state("card", 7)
    after = scrape(port)
    assert sample(after, "snapshot_timestamp_seconds", agent="card", partition="0") is None
    assert sample(after, "snapshot_bytes", agent="card", partition="0") is None
    assert sample(after, "store_entries", agent="card", partition="0") is None
    assert sample(after, "snapshots_written_total", agent="card") == 1


def test_series_with_known_labels_start_at_zero(metrics: WorkerMetrics) -> None:
    served = scrape(metrics.start())
    assert sample(served, "models_refused_total", model="river") == 0
    assert sample(served, "decisions_total", action="alert") == 0
    assert sample(served, "transactions_aborted_total", agent="learn") == 0
    assert sample(served, "quarantined_total", agent="score", topic="profiled") == 0
    assert sample(served, "redelivered_total", agent="card") == 0
    assert sample(served, "snapshots_failed_total", agent="feedback") == 0


def test_a_swapped_version_ends_its_series(metrics: WorkerMetrics) -> None:
    metrics.model_version("river", "7")
    metrics.model_version("lightgbm", "a")
    metrics.model_version("river", "8")
    metrics.model_version("river", "8")
    served = scrape(metrics.start())
    assert sample(served, "model_version_info", model="river", version="7") is None
    assert sample(served, "model_version_info", model="river", version="8") == 1
    assert sample(served, "model_version_info", model="lightgbm", version="a") == 1


def test_a_revoked_partition_ends_its_series(metrics: WorkerMetrics) -> None:
    metrics.show("lag_records", 11, "card", "labels", 0)
    metrics.show("lag_records", 12, "card", "labels", 1)
    metrics.forget("lag_records", agent="card", topic="labels", partition=0)
    metrics.forget("lag_records", agent="card", topic="labels", partition=7)
    served = scrape(metrics.start())
    assert sample(served, "lag_records", agent="card", topic="labels", partition="0") is None
    assert sample(served, "lag_records", agent="card", topic="labels", partition="1") == 12


def test_latencies_of_a_batch_fall_into_prometheus_buckets(metrics: WorkerMetrics) -> None:
    latencies_s = np.array([0.001, 0.0011, 0.2, 1_000.0])
    metrics.decision_latency_seconds(latencies_s)
    metrics.decision_latency_seconds(np.array([]))
    served = scrape(metrics.start())
    assert sample(served, "decision_latency_seconds_bucket", le="0.001") == 1
    assert sample(served, "decision_latency_seconds_bucket", le="0.0025") == 2
    assert sample(served, "decision_latency_seconds_bucket", le="300.0") == 3
    assert sample(served, "decision_latency_seconds_bucket", le="+Inf") == 4
    assert sample(served, "decision_latency_seconds_count") == 4
    assert sample(served, "decision_latency_seconds_sum") == pytest.approx(latencies_s.sum())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_latency_that_is_no_number_is_refused_whole(value: float) -> None:
    registry = CollectorRegistry()
    histogram = ArrayHistogram("delay_seconds", "A delay.", (1.0,), registry)
    with pytest.raises(ValueError, match="finite"):
        histogram.observe([0.5, value])
    assert registry.get_sample_value("delay_seconds_count") == 0


def test_a_port_in_use_says_which_setting_to_change(metrics: WorkerMetrics) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(EndpointError, match=r"in use.*FRAUD_PIPELINE_METRICS_PORT"):
            WorkerMetrics(port=taken.getsockname()[1]).start()


def test_an_address_of_another_machine_says_which_setting_to_change() -> None:
    with pytest.raises(EndpointError, match="FRAUD_PIPELINE_METRICS_HOST"):
        WorkerMetrics(host="192.0.2.1").start()


def test_stop_frees_the_port_and_start_serves_once(metrics: WorkerMetrics) -> None:
    port = metrics.start()
    with pytest.raises(EndpointError, match="already"):
        metrics.start()
    metrics.stop()
    metrics.stop()
    again = WorkerMetrics(port=port)
    assert again.start() == port
    again.stop()
