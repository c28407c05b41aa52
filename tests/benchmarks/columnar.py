"""A backtest over columns: from a Parquet file to decisions as a frame, on one core.

Part ``replay`` of ``make bench``. History fills the windows first, untimed; feedback and River's learning are
timed apart, in a replay of their own.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline.backtest import Decisions, Learning, delayed_truth, file_tables, frame_tables, label_tables, replay
from pipeline.backtest.engine.column_kernels import Engine
from pipeline.backtest.engine.online import OnlineTrainer
from pipeline.backtest.runner import replay as replay_module
from pipeline.decision.policy import Policy
from pipeline.engine.cards.card_join import CardJoin
from pipeline.engine.scores.active_models import ActiveModels
from pipeline.features.kernel import CardWindows, MerchantWindows
from pipeline.history.files import CHUNK_ROWS
from pipeline.scoring.lightgbm_model import LightGBMModel
from pipeline.scoring.river_layer import RiverLayer
from schemas.times import US_PER_HOUR
from tests.benchmarks.alone import (
    DAYS_AGO,
    SMALL,
    Size,
    Timed,
    clocks,
    default_options,
    one_core,
    scratch,
    since,
    stages_row,
)
from tests.benchmarks.stages import Stages
from tests.benchmarks.traffic import a_while_ago

_LABEL_DELAY_S = 7_200.0

STAGES: dict[str, list[tuple[Any, str]]] = {
    "check and convert": [(replay_module, "accept_transactions"), (replay_module, "accept_labels")],
    "repeats and labels": [(CardJoin, "join")],
    "card windows": [(CardWindows, "profile"), (CardWindows, "commit")],
    "merchant windows": [(MerchantWindows, "profile"), (MerchantWindows, "commit")],
    "trees": [(LightGBMModel, "logit")],
    "River": [(RiverLayer, "logit")],
    "policy": [(Policy, "decide")],
    "keys, features, rest": [(Engine, "decide")],
    "frame of decisions": [(Decisions, "frame")],
}
"""Functions that are called once a chunk, by the stage that they are counted for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(Size):
    """A run."""

    rows: int = 400_000
    chunk_rows: int = CHUNK_ROWS


QUICK = Options(rows=20_000, traffic=SMALL)


class Replayed(NamedTuple):
    """One replay."""

    transactions: int
    alerts: int
    labels: int
    took: Timed
    """From the first measured row read to the last frame of decisions."""


def write_files(directory: Path, options: Options) -> None:
    """History and measured transactions, and the labels of a share of both, as Parquet."""
    starts = a_while_ago(DAYS_AGO)
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
        self.started = clocks()
        yield from measured


def once(directory: Path, models: ActiveModels, options: Options, stages: Stages | None, learning: bool) -> Replayed:
    """One replay of the files."""
    clock, transactions, alerts, labels = _Clock(stages), 0, 0, 0
    card, feedback = default_options(options.partitions)
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
        transactions += len(decisions.frame())
        alerts += int(np.count_nonzero(decisions.alert))
        labels += sum(decisions.label_outcomes.values())
    assert clock.started is not None
    return Replayed(transactions, alerts, labels, since(clock.started))


PARTS = ("history", "measured")


def measure(options: Options, _tell: Callable[[str], None]) -> dict[str, Any]:
    """The part of ``build/bench.json``: the files replayed with no clock inside, by stages, and learning."""
    models = options.models()
    with scratch("columnar-") as directory:
        write_files(directory, options)
        with one_core(options.core):
            found = once(directory, models, options, None, learning=False)
            stages = Stages()
            with stages.around(STAGES), stages.stage("file, order, handover"):
                staged = once(directory, models, options, stages, learning=False)
            learning = Stages()
            with learning.around({"learning": [(OnlineTrainer, "learn")]}):
                once(directory, models, options, learning, learning=True)
    return {
        "transactions": found.transactions,
        "labels": found.labels,
        "alerts": found.alerts,
        **found.took.row(found.transactions),
        "learning_us_a_transaction": stages_row(learning.seconds, found.transactions)["learning"],
        "stages_us": stages_row(stages.seconds, staged.transactions),
        **options.forest(),
        "chunk": options.chunk_rows,
    }
