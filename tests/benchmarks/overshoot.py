"""How far a flooding rule exceeds its cap: a real broker, several partitions, with and without breaker and bounds.

One JSON line for each way::

    FRAUD_PIPELINE_FEATURES_FILE=tests/features.toml python -m tests.benchmarks.overshoot --rate 500 --seconds 15
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from pipeline.broker import embedded_broker
from pipeline.models.library import PublishedVersions
from pipeline.settings import Settings
from tests.helpers.logs import after
from tests.helpers.topics import Cluster
from tests.helpers.worker import Worker

PARTITIONS: Final = 8
CAP: Final = 100
WHY: Final = ("--reason", "A flood.", "--by", "dana")
WAYS: Final = {
    "partitions and breaker": (CAP, 1.0, True),
    "partitions alone": (CAP, 1.0, False),
    "breaker alone": (10**9, 0.05, True),
}
"""Cap on alerts an hour, on the hit rate, and whether a breaker runs. A hit rate is no bound of a partition."""


def flood(cluster: Cluster, rate: float, seconds: float) -> int:
    """Buy at a steady rate, all within one hour of event time; return how often."""
    started_s, number = time.monotonic(), 0
    while (passed_s := time.monotonic() - started_s) < seconds:
        while number < rate * passed_s:
            at = after(hours=1, microseconds=1_000 * number)
            cluster.buy(number, at, card_id=f"c{number % 5_000}", merchant_id=f"m{number % 400}")
            number += 1
        cluster.flush()
        time.sleep(0.01)
    return number


def measure(broker: str, directory: Path, name: str, rate: float, seconds: float) -> dict[str, Any]:
    """Flood a rule, and count the alerts that it raises."""
    cap, hit_rate, with_breaker = WAYS[name]
    cluster = Cluster(
        Settings(
            kafka_bootstrap_servers=broker, topic_prefix=f"{name.replace(' ', '-')}-", data_dir=directory / name,
            timestamps="producer", metrics_port=0, card_partitions=PARTITIONS, merchant_partitions=PARTITIONS,
        )
    )  # fmt: skip
    cluster.publish()
    file = directory / "flood.sql"
    file.write_text(
        "-- code: flood\n-- owner: dana\n-- reason: Everything.\n"
        f"-- max-alerts-per-hour: {cap}\n-- max-hit-rate: {hit_rate}\namount > 0\n"
    )
    cluster.command("rules", "publish", str(file), *WHY, code=0)
    cluster.command("rules", "activate", "flood", "--untested", *WHY, code=0)
    with ExitStack() as stack:
        worker = Worker(cluster.settings, directory / "worker.log")
        stack.callback(worker.end)
        cluster.buy(10**6, after(), card_id="first")
        cluster.flush()
        worker.until(lambda: len(cluster.decisions()) == 1)
        if with_breaker:
            breaker = Worker(cluster.settings, directory / "breaker.log", ("-m", "pipeline.cli", "breaker"))
            stack.callback(breaker.end)
            breaker.until_it_says("rules that exceed a cap are stopped")
        bought = flood(cluster, rate, seconds)
        worker.until(lambda: len(cluster.decisions()) == bought + 1)
    return {"way": name, "rate": rate, "partitions": PARTITIONS, "cap": cap, "bought": bought, **_figures(cluster, cap)}


def _figures(cluster: Cluster, cap: int) -> dict[str, Any]:
    raised = [each for each in cluster.decisions() if each.selection == "rule" and each.card_id != "first"]
    raised.sort(key=lambda decision: decision.decided_at)
    found: dict[str, Any] = {
        "alerts": len(raised),
        "by_partition": sorted(Counter(decision.log.partition for decision in raised).values()),
    }
    history = PublishedVersions.on(cluster.bootstrap, cluster.settings).history
    stops = [activation for activation in history.activations if activation.by == "breaker"]
    if stops and len(raised) > cap:
        exceeded = raised[cap].decided_at
        found["seconds_to_stop"] = round((stops[0].activated_at - exceeded).total_seconds(), 3)
    found["seconds_to_last_alert"] = round((raised[-1].decided_at - raised[0].decided_at).total_seconds(), 3)
    return found


def main() -> None:
    """Print what each way gives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=500.0, help="transactions a second")
    parser.add_argument("--seconds", type=float, default=20.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, embedded_broker(Path(name) / "kafka") as broker:
        for way in WAYS:
            print(json.dumps(measure(broker.bootstrap_servers, Path(name), way, given.rate, given.seconds)), flush=True)


if __name__ == "__main__":
    main()
