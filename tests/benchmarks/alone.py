"""What the benchmarks of one process on one core share: their size, their models, their place, and their clocks."""

import gc
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.engine.cards.card_options import CardOptions
from pipeline.engine.scores.active_models import ActiveModels
from pipeline.settings import Settings
from pipeline.settings.kernel_options import card_options, feedback_config
from pipeline.settings.rate_table import load_rates
from schemas.messages import FeedbackConfig
from tests.benchmarks.forests import BUILD, LEAVES, TREES, champion
from tests.benchmarks.traffic import LABELLED, Traffic

DAYS_AGO = 60
"""How long ago measured transactions begin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Of a run."""

    rows: int = 200_000
    """Measured transactions."""
    partitions: int = 1
    traffic: Traffic = field(default_factory=Traffic)
    labelled: float = LABELLED
    """Share of transactions that get a label."""
    trees: int = TREES
    leaves: int = LEAVES
    training_cards: int = 1_000
    core: int | None = None
    """The last one where none is named."""

    def models(self) -> ActiveModels:
        """What scores."""
        return champion(self.trees, self.leaves, cards=self.training_cards)

    def forest(self) -> dict[str, int]:
        """For ``build/bench.json``."""
        return {"trees": self.trees, "leaves": self.leaves}


SMALL = Traffic(cards=2_000, merchants=1_000, history_days=5)
"""Of quick runs."""


class Timed(NamedTuple):
    """What a pass over transactions took."""

    wall_s: float
    cpu_s: float

    def row(self, transactions: int) -> dict[str, Any]:
        """For ``build/bench.json``."""
        n = max(1, transactions)
        return {
            "transactions_a_second": round(n / self.wall_s),
            "transactions_a_cpu_second": round(n / self.cpu_s),
            "us_a_transaction": self.us(n),
        }

    def us(self, transactions: int) -> float:
        """Processor microseconds of each."""
        return round(1e6 * self.cpu_s / max(1, transactions), 2)


def clocks() -> Timed:
    """The clocks."""
    return Timed(time.perf_counter(), time.process_time())


def since(started: Timed) -> Timed:
    """What they have gone on by."""
    return Timed(*(b - a for a, b in zip(started, clocks(), strict=True)))


def stages_row(seconds: Mapping[str, float], transactions: int) -> dict[str, float]:
    """Processor microseconds a transaction, by stage."""
    return {name: round(1e6 * s / max(1, transactions), 2) for name, s in seconds.items()}


def default_options(partitions: int) -> tuple[CardOptions, FeedbackConfig]:
    """Return the kernels' options under default settings."""
    settings = Settings()
    return card_options(settings, load_rates(settings), partitions), feedback_config(settings)


@contextmanager
def scratch(prefix: str) -> Iterator[Path]:
    """A directory that is gone afterwards."""
    BUILD.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(dir=BUILD, prefix=prefix))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


@contextmanager
def one_core(core: int | None, thresholds: tuple[int, int, int] | None = None) -> Iterator[None]:
    """Stay on one core, after a collection of garbage; ``thresholds`` are those of the collector meanwhile."""
    cores, before = os.sched_getaffinity(0), gc.get_threshold()
    os.sched_setaffinity(0, {core if core is not None else max(cores)})
    gc.collect()
    if thresholds is not None:
        gc.set_threshold(*thresholds)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        os.sched_setaffinity(0, cores)
