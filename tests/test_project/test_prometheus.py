"""A real Prometheus server with the deployment's rules reads a worker's metrics."""

import json
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.broker.local import free_port
from pipeline.observability.metric_declarations import WORKER_METRICS
from pipeline.observability.metrics import WorkerMetrics
from tests.helpers.generated import exported_metrics
from tests.helpers.tools import tool
from tests.helpers.waiting import TIMEOUT_S, eventually

DEPLOYED = Path(__file__).resolve().parents[2] / "deploy/prometheus"
Ask = Callable[..., Any]


@pytest.fixture
def metrics() -> Iterator[WorkerMetrics]:
    worker = WorkerMetrics()
    yield worker
    worker.stop()


@pytest.fixture
def ask(metrics: WorkerMetrics, tmp_path: Path) -> Iterator[Ask]:
    """Asks the API of a server that scrapes ``metrics``; None while it does not answer."""
    config = yaml.safe_load((DEPLOYED / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "200ms", "scrape_timeout": "200ms", "evaluation_interval": "200ms"}
    config["rule_files"] = [str(DEPLOYED / "rules.yml")]
    (job,) = config["scrape_configs"]
    del job["dns_sd_configs"]
    job["static_configs"] = [{"targets": [f"127.0.0.1:{metrics.start()}"]}]
    path, port = tmp_path / "prometheus.yml", free_port()
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [
        tool("prometheus", "prometheus"),
        f"--config.file={path}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def answer(name: str, **parameters: str) -> Any:
        assert server.poll() is None, (tmp_path / "log").read_text()
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{port}/api/v1/{name}?{urllib.parse.urlencode(parameters)}", timeout=TIMEOUT_S
            ) as response:
                return json.load(response)["data"]
        except urllib.error.URLError:
            return None

    yield answer
    server.terminate()
    server.wait()


def test_the_server_reads_every_metric_and_evaluates_every_rule(metrics: WorkerMetrics, ask: Ask) -> None:
    metrics.show("oldest_undecided_seconds", 72.5, "card", "transactions", 3)
    metrics.records_refused("control")

    def value(metric: str) -> str | None:
        found = ask("query", query=metric)
        return found["result"][0]["value"][1] if found and found["result"] else None

    eventually(lambda: value("fraud_pipeline_oldest_undecided_seconds") == "72.5")
    known = set(ask("label/__name__/values"))
    exported = {
        f"{name}_count" if metric.kind == "histogram" else name
        for name, metric in exported_metrics(WORKER_METRICS).items()
        if not metric.labels
    }
    assert exported - known == set()

    def states() -> dict[str, tuple[str, str]]:
        groups = (ask("rules") or {"groups": []})["groups"]
        return {rule["name"]: (rule["health"], rule["state"]) for group in groups for rule in group["rules"]}

    declared = yaml.safe_load((DEPLOYED / "rules.yml").read_text(encoding="utf-8"))["groups"]
    alerts = {rule["alert"] for group in declared for rule in group["rules"]}
    eventually(lambda: {name for name, (health, _) in states().items() if health == "ok"} == alerts)
    eventually(lambda: states()["FraudRecordsUndecided"] == ("ok", "pending"))
    eventually(lambda: states()["FraudRecordsRefused"] == ("ok", "firing"))
