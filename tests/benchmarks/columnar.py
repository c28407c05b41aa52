"""A backtest over columns: from a Parquet file to decisions as a frame, on one core.

Run ``python -m tests.benchmarks.columnar``. History fills the windows first, untimed; feedback and River's learning are
timed apart, in a replay of their own.
"""

import argparse
import gc
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline.backtest import Decisions, Learning, delayed_truth, file_tables, frame_tables, label_tables, replay, run
from pipeline.backtest.engine import Engine
from pipeline.backtest.learning import Teacher
from pipeline.backtest.tables import CHUNK_ROWS
from pipeline.decision.policy import Policy
from pipeline.engine.card import CardOptions
from pipeline.engine.feedback import FeedbackOptions
from pipeline.engine.models import ActiveModels
from pipeline.features.catalogue import US_PER_DAY, US_PER_HOUR
from pipeline.features.kernel import CardWindows, MerchantWindows
from pipeline.rates import load_rates
from pipeline.scoring.lightgbm_model import LightGBMModel
from pipeline.scoring.river_layer import RiverLayer
from pipeline.settings import Settings
from tests.benchmarks.forests import BUILD, LEAVES, TREES, champion
from tests.benchmarks.in_process import NO_TIME, Timed
from tests.benchmarks.stages import Stages
from tests.benchmarks.traffic import LABELLED, Traffic, a_while_ago

_DAYS_AGO = 60
_LABEL_DELAY_S = 7_200.0

STAGES: dict[str, list[tuple[Any, str]]] = {
    "check and convert": [(run, "accept_transactions"), (run, "accept_labels")],
    "repeats and labels": [(Engine, "_join")],
    "card windows": [(CardWindows, "profile_keys"), (CardWindows, "settle")],
    "merchant windows": [(MerchantWindows, "profile_keys"), (MerchantWindows, "settle")],
    "trees": [(LightGBMModel, "logit")],
    "River": [(RiverLayer, "logit")],
    "policy": [(Policy, "decide")],
    "keys, features, rest": [(Engine, "decide")],
    "frame of decisions": [(Decisions, "frame")],
}
"""Functions that are called once a chunk, by the stage that they are counted for."""


@dataclass(frozen=True, slots=True)
class Options:
    """A run."""

    rows: int = 400_000
    chunk_rows: int = CHUNK_ROWS
    partitions: int = 1
    traffic: Traffic = field(default_factory=Traffic)
    trees: int = TREES
    leaves: int = LEAVES
    training_cards: int = 1_000
    core: int | None = None
    labelled: float = LABELLED
    """Share of transactions that get a label, two hours later."""


QUICK = Options(rows=20_000, traffic=Traffic(cards=2_000, merchants=1_000, history_days=5))


@dataclass(slots=True)
class Outcome:
    """One replay."""

    transactions: int = 0
    alerts: int = 0
    labels: int = 0
    took: Timed = NO_TIME
    """From the first measured row read to the last frame of decisions."""
    learning_s: float = 0.0
    stages_us: dict[str, float] = field(default_factory=dict)
    """Processor microseconds a transaction."""

    def row(self) -> dict[str, Any]:
        """For ``build/bench.json``."""
        n = max(1, self.transactions)
        return {
            "transactions": self.transactions,
            "labels": self.labels,
            "alerts": self.alerts,
            "transactions_a_second": round(n / self.took.wall_s),
            "transactions_a_cpu_second": round(n / self.took.cpu_s),
            "us_a_transaction": round(1e6 * self.took.cpu_s / n, 2),
            "learning_us_a_transaction": round(1e6 * self.learning_s / n, 2),
            "stages_us": {name: round(us, 2) for name, us in self.stages_us.items()},
        }


def write_files(directory: Path, options: Options) -> None:
    """History and measured transactions, and the labels of a share of both, as Parquet."""
    starts = a_while_ago(_DAYS_AGO)
    columns = ["transaction_id", "event_time", "card_id", "merchant_id", "amount", "currency", "fraud"]
    parts = {"history": options.traffic.history(starts), "measured": options.traffic.measured(starts, options.rows)}
    for name, frame in parts.items():
        frame[columns].to_parquet(directory / f"{name}.parquet", index=False)
    whole = pd.concat(parts.values(), ignore_index=True)
    chosen = whole[np.random.default_rng((options.traffic.seed, 11)).random(len(whole)) < options.labelled]
    labels = pa.concat_tables(delayed_truth(frame_tables(chosen[columns]), _LABEL_DELAY_S))
    labels.to_pandas().to_parquet(directory / "labels.parquet", index=False)


class _Clock:
    """Starts when the first measured table is asked for."""

    def __init__(self, stages: Stages | None) -> None:
        self.stages = stages
        self.started: Timed | None = None

    def around(self, history: Iterator[pa.Table], measured: Iterator[pa.Table]) -> Iterator[pa.Table]:
        """Both, one after the other."""
        yield from history
        if self.stages is not None:
            self.stages.seconds.clear()
        self.started = now()
        yield from measured


def now() -> Timed:
    """The clocks."""
    return Timed(time.perf_counter(), time.process_time())


def once(directory: Path, models: ActiveModels, options: Options, stages: Stages | None, learning: bool) -> Outcome:
    """One replay of the files."""
    settings = Settings()
    future_us, horizon_us = round(settings.future_tolerance_s * 1e6), round(settings.label_horizon_days * US_PER_DAY)
    card = CardOptions(load_rates(settings), future_us, horizon_us, horizon_us, options.partitions)
    feedback = FeedbackOptions(
        future_us, horizon_us, round(settings.maturity_days * US_PER_DAY), settings.negative_sample_rate,
        options.partitions,
    )  # fmt: skip
    clock, outcome = _Clock(stages), Outcome()
    tables = (file_tables(directory / f"{name}.parquet", chunk_rows=options.chunk_rows) for name in PARTS)
    decided = replay(
        models,
        clock.around(*tables),
        label_tables(directory / "labels.parquet"),
        options=card,
        learning=Learning(feedback, US_PER_HOUR) if learning else None,
    )
    for decisions in decided:
        if clock.started is None:
            continue
        outcome.transactions += len(decisions.frame())
        outcome.alerts += int(np.count_nonzero(decisions.alert))
        outcome.labels += sum(decisions.label_outcomes.values())
    assert clock.started is not None
    outcome.took = Timed(*(b - a for a, b in zip(clock.started, now(), strict=True)))
    return outcome


PARTS = ("history", "measured")


def run_benchmark(options: Options) -> Outcome:
    """Write the files and replay them: with no clock inside, by stages, and learning; pinned to one core."""
    models = champion(options.trees, options.leaves, cards=options.training_cards)
    BUILD.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(dir=BUILD, prefix="columnar-"))
    cores = os.sched_getaffinity(0)
    try:
        write_files(directory, options)
        gc.collect()
        os.sched_setaffinity(0, {options.core if options.core is not None else max(cores)})
        outcome = once(directory, models, options, None, learning=False)
        stages = Stages()
        with stages.around(STAGES), stages.stage("file, order, handover"):
            staged = once(directory, models, options, stages, learning=False)
        outcome.stages_us = {name: 1e6 * s / staged.transactions for name, s in stages.seconds.items()}
        lessons = Stages()
        with lessons.around({"learning": [(Teacher, "learn")]}):
            once(directory, models, options, lessons, learning=True)
        outcome.learning_s = lessons.seconds["learning"]
        return outcome
    finally:
        os.sched_setaffinity(0, cores)
        shutil.rmtree(directory)


def rows(*, quick: bool = False) -> dict[str, Any]:
    """For ``build/bench.json``."""
    options = QUICK if quick else Options()
    row = run_benchmark(options).row()
    return {**row, "trees": options.trees, "leaves": options.leaves, "chunk": options.chunk_rows}


def describe(row: dict[str, Any]) -> str:
    """What a terminal shows."""
    lines = [
        f"{row['transactions_a_cpu_second']:,} transactions a second of the core ({row['us_a_transaction']} us each), "
        f"{row['alerts']:,} alerts, {row['labels']:,} labels",
        f"feedback and learning {row['learning_us_a_transaction']} us a transaction",
    ]
    lines += [f"  {name:24} {us:7.2f} us" for name, us in sorted(row["stages_us"].items(), key=lambda kv: -kv[1])]
    return "\n".join(lines)


def main() -> None:
    """Print what a replay took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = Options()
    parser.add_argument("--rows", type=int, default=defaults.rows)
    parser.add_argument("--chunk-rows", type=int, default=defaults.chunk_rows)
    parser.add_argument("--partitions", type=int, default=defaults.partitions)
    parser.add_argument("--history-days", type=int, default=defaults.traffic.history_days)
    parser.add_argument("--cards", type=int, default=defaults.traffic.cards)
    parser.add_argument("--labelled", type=float, default=defaults.labelled, help="share of transactions with a label")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    options = Options(
        rows=given.rows,
        chunk_rows=given.chunk_rows,
        partitions=given.partitions,
        traffic=Traffic(cards=given.cards, merchants=given.cards // 2, history_days=given.history_days),
        labelled=given.labelled,
    )
    row = run_benchmark(options).row()
    print(json.dumps(row, indent=2) if given.json else describe(row))


if __name__ == "__main__":
    main()
