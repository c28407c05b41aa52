"""Whole backtests, as the command runs them: how fast from topics, and what memory a longer range takes.

Run ``python -m tests.benchmarks.backtests``. A broker of its own holds simulated history on topics of four partitions,
which is decided by LightGBM and an online model that stays as it is. Memory is that of processes of their own which
read files of the same cards, one of them four times as long as the other, and make the report.
"""

import argparse
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

from pipeline import Backtest
from pipeline.backtest.report import build_report
from pipeline.backtest.runner.statistics import BacktestProgress
from pipeline.broker import embedded_broker
from pipeline.engine.scores.models import ActiveModels
from pipeline.kafka.cluster.admin import ensure_topics
from pipeline.models.publish import publish_champion
from pipeline.models.registry import LIGHTGBM, POLICY, Registry
from pipeline.replay.messages import event_times_us
from pipeline.settings import Settings
from tests.benchmarks.alone import DAYS_AGO, SMALL, Size, Timed, arguments, clocks, scratch, since, size_fields
from tests.benchmarks.job.prepare import write
from tests.benchmarks.ours.job import pipeline_settings
from tests.benchmarks.traffic import Traffic, a_while_ago, items
from tests.helpers.backtest_inputs import backtest_of

PARTITIONS = 4
LENGTHS = (1, 4)
LABELLED_AFTER_MS = 2 * 3_600_000
_EVERY_S = 0.02
_HORIZON_DAYS = 35
"""Of what is remembered of transactions, so that the state no longer grows behind the shorter range."""
_MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(Size):
    """A run."""

    rows: int = 700_000
    partitions: int = PARTITIONS
    ranges: Traffic = field(default_factory=lambda: Traffic(cards=3_000, merchants=1_500, history_days=120))
    """Of the shorter range; the longer one has four times as many days."""


QUICK = Options(rows=20_000, traffic=SMALL, ranges=Traffic(cards=300, merchants=100, history_days=10))


def write_topics(settings: Settings, options: Options) -> datetime:
    """Put history and measured transactions on the topics, and labels of some; returns when the latter begin."""
    starts = a_while_ago(DAYS_AGO)
    for frame in (options.traffic.history(starts), options.traffic.measured(starts, options.rows)):
        write(settings.kafka_bootstrap_servers or "", _records(frame, settings, options.traffic.seed))
    return datetime(starts.year, starts.month, starts.day, tzinfo=UTC)


def _records(frame: pd.DataFrame, settings: Settings, seed: int) -> Iterator[tuple[str, bytes, bytes, int]]:
    times_ms = (event_times_us(frame) // 1_000).tolist()
    for item in items(frame, seed):
        late_ms = LABELLED_AFTER_MS if item.topic == "labels" else 0
        yield settings.topic(item.topic), item.key, item.value, times_ms[item.number] + late_ms


def from_topics(bootstrap: str, directory: Path, options: Options) -> dict[str, Any]:
    """Decide what lies on topics of their own, the warm-up included."""
    models = options.models()
    settings = pipeline_settings(bootstrap, directory.name, directory / "data", options.partitions)
    ensure_topics(bootstrap, settings)
    publish_champion(bootstrap, settings, models.lightgbm, models.policy)
    begins = write_topics(settings, options)
    # The first run compiles, or loads what was compiled.
    _, (transactions, took) = [_decided(backtest_of(settings=settings, start=begins)) for _ in range(2)]
    return {"transactions": transactions, **took.row(transactions)}


def _decided(asked: Backtest) -> tuple[int, Timed]:
    steps: list[BacktestProgress] = []
    started = clocks()
    asked.run(steps.append)
    return steps[-1].transactions, since(started)


def memory(path: Path, data_dir: Path) -> dict[str, Any]:
    """Decide the file at ``path`` and report it; what that took of the processor, and at most of memory.

    The models are the active ones of the registry of ``data_dir``.
    """
    peak = {"anonymous_mib": 0.0, "resident_mib": 0.0}
    ends = threading.Event()

    def watch() -> None:
        process = psutil.Process()
        while not ends.wait(_EVERY_S):
            used = process.memory_info()
            peak["anonymous_mib"] = max(peak["anonymous_mib"], (used.rss - used.shared) / _MIB)
            peak["resident_mib"] = max(peak["resident_mib"], used.rss / _MIB)

    settings = Settings(data_dir=data_dir, deduplication_days=_HORIZON_DAYS, label_grace_days=_HORIZON_DAYS)
    watcher = threading.Thread(target=watch)
    watcher.start()
    started = clocks()
    try:
        result = backtest_of(path, settings=settings).run()
        decided = since(started)
        _ = build_report(result).html
        took = since(started)
    finally:
        ends.set()
        watcher.join()
    transactions = len(result.variants[0].decisions)
    return {
        "transactions": transactions,
        **{name: round(mib) for name, mib in peak.items()},
        "decided_us_a_transaction": decided.us(transactions),
        "reported_us_a_transaction": took.us(transactions),
    }


def write_range(path: Path, traffic: Traffic, length: int) -> None:
    """The days of ``traffic`` ``length`` times over, of the same cards."""
    days = length * traffic.history_days
    longer = Traffic(cards=traffic.cards, merchants=traffic.merchants, seed=traffic.seed, history_days=days)
    longer.history(a_while_ago(DAYS_AGO)).to_parquet(path, index=False)


def register(data_dir: Path, models: ActiveModels) -> None:
    """Activate ``models`` in the registry of ``data_dir``: whoever made them needed memory that is not counted."""
    registry = Registry(Settings(data_dir=data_dir).registry_path)
    for name, model in ((LIGHTGBM, models.lightgbm), (POLICY, models.policy)):
        registry.activate(name, registry.register(name, model.to_payload()))


def of_lengths(directory: Path, options: Options) -> list[dict[str, Any]]:
    """`memory` of ranges of `LENGTHS`, each in a process of its own."""
    found = []
    register(directory / "data", options.models())
    for length in LENGTHS:
        path = directory / f"{length}.parquet"
        write_range(path, options.ranges, length)
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            found.append({"length": length, **process.submit(memory, path, directory / "data").result()})
    return found


def run(options: Options) -> dict[str, Any]:
    """Both parts."""
    with scratch("backtests-") as directory:
        with embedded_broker(directory / "kafka") as broker:
            topics = from_topics(broker.bootstrap_servers, directory, options)
        return {"topics": topics, "ranges": of_lengths(directory, options)}


def describe(row: dict[str, Any]) -> str:
    """What a terminal shows."""
    topics = row["topics"]
    lines = [
        f"from topics: {topics['transactions_a_second']:,} transactions a second, "
        f"{topics['transactions_a_cpu_second']:,} a second of the processor, "
        f"{topics['us_a_transaction']} us each, of {topics['transactions']:,}"
    ]
    lines += [
        f"range x {row['length']}: {row['transactions']:,} decisions, at most {row['anonymous_mib']:,} MiB of memory, "
        f"{row['resident_mib']:,} MiB with mapped files; {row['decided_us_a_transaction']} us each to decide, "
        f"{row['reported_us_a_transaction']} us with the report"
        for row in row["ranges"]
    ]
    return "\n".join(lines)


def main() -> None:
    """Print what it took."""
    parser: argparse.ArgumentParser = arguments(__doc__, Options())
    parser.add_argument("--quick", action="store_true", help="small inputs, to see that all of it works")
    given = parser.parse_args()
    row = run(QUICK if given.quick else Options(**size_fields(given)))
    print(json.dumps(row, indent=2) if given.json else describe(row))


if __name__ == "__main__":
    main()
