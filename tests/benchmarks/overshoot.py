"""Excess of a flooding rule, or of a suppression, over its cap: a real broker, several partitions.

One JSON line for each way of a rule, with and without breaker and bounds; with ``--suppression`` one of `lists caps`::

    FRAUD_PIPELINE_FEATURES_FILE=tests/features.toml python -m tests.benchmarks.overshoot --rate 500 --seconds 15
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

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
SUPPRESSION: Final = "suppression"
SUPPRESSED: Final = 1_000.0
"""Cap of the suppression, in the base currency."""


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
    cap, hit_rate, with_breaker = WAYS.get(name, (10**9, 1.0, False))
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
    if name == SUPPRESSION:
        options = ("--kind", "suppress", "--field", "rule", "--for", "1d", "--cap", f"{SUPPRESSED:.2f}")
        cluster.command("lists", "add", "quiet", "flood", *options, *WHY, code=0)
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
        if name == SUPPRESSION:
            caps = Worker(cluster.settings, directory / "caps.log", ("-m", "pipeline.cli", "lists", "caps"))
            stack.callback(caps.end)
            caps.until_it_says("suppressions that reach a cap are ended")
        bought = flood(cluster, rate, seconds)
        worker.until(lambda: len(cluster.decisions()) == bought + 1)
    found = _suppressed(cluster) if name == SUPPRESSION else {"cap": cap, **_figures(cluster, cap)}
    return {"way": name, "rate": rate, "partitions": PARTITIONS, "bought": bought, **found}


def _suppressed(cluster: Cluster) -> dict[str, Any]:
    """Return what was suppressed beyond the cap, in the base currency and in seconds."""
    hits = sorted((each for each in cluster.decisions() if each.overruled), key=lambda each: each.decided_at)
    amounts = np.cumsum([each.amount_base for each in hits])
    assert amounts.max(initial=0) >= SUPPRESSED, "the cap was not reached"
    reached = hits[int(np.searchsorted(amounts, SUPPRESSED))].decided_at
    return {
        "cap": SUPPRESSED,
        "suppressed": round(float(amounts[-1]), 2),
        "beyond": round(float(amounts[-1]) - SUPPRESSED, 2),
        "beyond_hits": sum(each.decided_at > reached for each in hits),
        "seconds_to_stop": _seconds(reached, _first_step(cluster, "lists caps")),
        "seconds_beyond": _seconds(reached, hits[-1].decided_at),
    }


def _first_step(cluster: Cluster, by: str) -> datetime | None:
    history = PublishedVersions.on(cluster.bootstrap, cluster.settings).history
    return next((activation.activated_at for activation in history.activations if activation.by == by), None)


def _seconds(start: datetime, end: datetime | None) -> float | None:
    return None if end is None else round((end - start).total_seconds(), 3)


def _figures(cluster: Cluster, cap: int) -> dict[str, Any]:
    raised = [each for each in cluster.decisions() if each.selection == "rule" and each.card_id != "first"]
    raised.sort(key=lambda decision: decision.decided_at)
    found: dict[str, Any] = {
        "alerts": len(raised),
        "by_partition": sorted(Counter(decision.log.partition for decision in raised).values()),
    }
    if (stopped := _first_step(cluster, "breaker")) and len(raised) > cap:
        found["seconds_to_stop"] = _seconds(raised[cap].decided_at, stopped)
    found["seconds_to_last_alert"] = _seconds(raised[0].decided_at, raised[-1].decided_at)
    return found


def main() -> None:
    """Print what each way gives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=500.0, help="transactions a second")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--suppression", action="store_true", help="measure the cap of a suppression, not of a rule")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, embedded_broker(Path(name) / "kafka") as broker:
        for way in (SUPPRESSION,) if given.suppression else WAYS:
            print(json.dumps(measure(broker.bootstrap_servers, Path(name), way, given.rate, given.seconds)), flush=True)


if __name__ == "__main__":
    main()
