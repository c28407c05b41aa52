"""How the kernels grow, each in one process on one core: windows with cards, model size, restores with state.

Run ``python -m tests.benchmarks.kernel_scale``. Every function gives rows for ``build/bench.json``.
"""

import argparse
import gc
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
from numpy.typing import NDArray

from pipeline.engine.cards.card import CardOptions, CardPartition
from pipeline.features.catalogue import KERNEL_VERSION
from pipeline.features.kernel import CardWindows, MerchantWindows
from pipeline.scoring.lightgbm_model import LightGBMModel
from pipeline.settings import Settings
from pipeline.settings.rate_table import load_rates
from pipeline.state.manifest import SnapshotKey
from pipeline.state.mapped import MappedStorage
from pipeline.state.snapshots import SnapshotRepository
from pipeline.state.store import RocksStore, StoreMemory
from schemas.records import Record
from schemas.times import US_PER_DAY
from tests.benchmarks import report
from tests.benchmarks.forests import BUILD, forest, training_matrix
from tests.benchmarks.stages import Stages
from tests.benchmarks.tables import as_text
from tests.benchmarks.traffic import Traffic, a_while_ago, items
from tests.helpers.keys import keys

Row = dict[str, Any]
START_US = 1_700_000_000_000_000
BYTES_A_CARD = 700
"""More than a card takes here, merchants and growth by half included: what does not fit into memory is left out."""
MEMORY_SHARE = 0.5
BATCH = 2_000
CARDS = (10_000, 100_000, 1_000_000, 5_000_000)
FILL_A_CARD = 2
MERCHANTS_A_CARD = 0.1
MODELS = ((50, 31), (200, 31), (200, 63), (400, 63), (200, 127))
MODEL_ROWS = (1, 10, 100, 2_000)
EXPLAINED_ROWS = (1, 50)
RESTORED = (50_000, 200_000, 800_000)


class Columns(NamedTuple):
    """Transactions as the kernels take them; arrays of n rows."""

    cards: list[str]
    merchants: list[str]
    time_us: NDArray[np.int64]
    amount: NDArray[np.int64]


def drawn(n: int, cards: int, merchants: int, from_us: int, until_us: int, generator: np.random.Generator) -> Columns:
    """``n`` transactions of cards and merchants drawn uniformly, in the order of their times."""
    return Columns(
        [f"card-{number}" for number in generator.integers(0, cards, n).tolist()],
        [f"merchant-{number}" for number in generator.integers(0, merchants, n).tolist()],
        np.sort(generator.integers(from_us, until_us, n)),
        generator.integers(1, 20_000, n),
    )


class Hops:
    """Windows of cards and of merchants, called as the two hops call them."""

    def __init__(self) -> None:
        self.cards, self.merchants = CardWindows(), MerchantWindows()

    def enter(self, columns: Columns, batch: int) -> None:
        """Profile both hops' features, batch by batch."""
        for start in range(0, len(columns.cards), batch):
            stop = min(start + batch, len(columns.cards))
            time_us, amount = columns.time_us[start:stop], columns.amount[start:stop]
            cards, merchants = keys(columns.cards[start:stop]), keys(columns.merchants[start:stop])
            n = stop - start
            ones, zeros = np.ones(n, np.bool_), np.zeros(n)
            self.cards.profile(cards, merchants, time_us, amount, ones, zeros, zeros)
            self.cards.commit()
            self.merchants.profile(
                np.zeros(n, np.uint8),
                merchants,
                np.zeros(n, np.uint64),
                time_us,
                amount,
                ones,
                np.zeros(n, np.bool_),
                np.zeros(n, np.int8),
                np.zeros(n, np.int64),
            )
            self.merchants.commit()


def windows_row(cards: int, *, rows: int, batch: int, a_card: float, merchants: int | None = None) -> Row:
    """Throughput with ``cards`` cards that have ``a_card`` transactions each in the last 30 days.

    The measured ``rows`` come on top; ``held_a_card`` and ``bytes_a_card`` are those of the end. ``population`` is
    what is drawn from, ``cards`` those that have been drawn.
    """
    generator = np.random.default_rng(3)
    merchants = max(10, round(cards * MERCHANTS_A_CARD)) if merchants is None else merchants
    hops, end_us = Hops(), START_US + 30 * US_PER_DAY
    total = round(cards * a_card)
    chunk = min(total, 500_000)
    for start in range(0, total, chunk):
        stop = min(start + chunk, total)
        span = (end_us - START_US) / total
        hops.enter(
            drawn(
                stop - start,
                cards,
                merchants,
                START_US + round(start * span),
                START_US + round(stop * span) + 1,
                generator,
            ),
            16_384,
        )
    measured = drawn(rows, cards, merchants, end_us, end_us + US_PER_DAY, generator)
    stages = Stages()
    with stages.around({"keys": [(sys.modules[__name__], "keys")]}), stages.stage("windows"):
        hops.enter(measured, batch)
    windows_s, keys_s = stages.seconds["windows"], stages.seconds["keys"]
    return {
        "population": cards,
        "cards": hops.cards.entities,
        "merchants": hops.merchants.entities,
        "transactions_a_card": a_card,
        "held_a_card": round(hops.cards.events / hops.cards.entities, 1),
        "batch": batch,
        "transactions_a_second": round(rows / windows_s),
        "with_names_a_second": round(rows / (windows_s + keys_s)),
        "bytes_a_card": round(hops.cards.nbytes / hops.cards.entities),
        "state_bytes": hops.cards.nbytes + hops.merchants.nbytes,
    }


def by_cards(*, quick: bool = False) -> list[Row]:
    """Throughput and bytes by the number of distinct cards; those that memory does not hold are left out."""
    rows = 100_000 if quick else 500_000
    wanted = CARDS[:2] if quick else CARDS
    room = psutil.virtual_memory().available * MEMORY_SHARE
    return [
        windows_row(cards, rows=rows, batch=BATCH, a_card=FILL_A_CARD)
        for cards in wanted
        if cards * BYTES_A_CARD <= room
    ]


def by_window_content(*, quick: bool = False) -> list[Row]:
    """Throughput by how many transactions of a card the longest window holds.

    The windows' lengths are constants of the compiled kernel; one that is k times as long holds k times as much, which
    is what its cost depends on.
    """
    contents = (3, 30) if quick else (3, 30, 300, 3_000)
    total = 30_000 if quick else 600_000
    return [
        windows_row(max(10, total // content), rows=total // 3, batch=BATCH, a_card=content) for content in contents
    ]


def by_batch(*, quick: bool = False) -> list[Row]:
    """Throughput by the rows of a batch."""
    rows = 20_000 if quick else 200_000
    return [
        windows_row(20_000, rows=rows, batch=batch, a_card=FILL_A_CARD)
        for batch in ((100, 2_000) if quick else (1, 10, 100, 500, 2_000, 10_000))
    ]


def by_model(*, quick: bool = False) -> list[Row]:
    """Time to score by trees, leaves and rows at a time, compiled where possible, and by LightGBM."""
    return [
        _model_row(size, model, part, model.logit, partial(model._booster.predict, raw_score=True, num_threads=1))
        for size, model, part in _models_and_rows(MODEL_ROWS[1:] if quick else MODEL_ROWS, quick=quick)
    ]


def by_explanation(*, quick: bool = False) -> list[Row]:
    """Time to explain by trees, leaves and rows at a time, compiled where possible, and by LightGBM."""
    return [
        _model_row(
            size, model, part, model.contributions, partial(model._booster.predict, pred_contrib=True, num_threads=1)
        )
        for size, model, part in _models_and_rows(EXPLAINED_ROWS[-1:] if quick else EXPLAINED_ROWS, quick=quick)
    ]


def _models_and_rows(
    counts: Sequence[int], *, quick: bool
) -> Iterator[tuple[tuple[int, int], LightGBMModel, NDArray[np.float64]]]:
    source = {"cards": 300, "days": 40} if quick else {}
    features = training_matrix(**source)[0]
    for size in ((10, 7),) if quick else MODELS:
        model = forest(*size, **source)
        for count in counts:
            yield size, model, np.ascontiguousarray(features[:count])


def _model_row(
    size: tuple[int, int],
    model: LightGBMModel,
    part: NDArray[np.float64],
    ours: Callable[[NDArray[np.float64]], object],
    theirs: Callable[[NDArray[np.float64]], object],
) -> Row:
    trees, leaves = size
    return {
        "trees": trees,
        "leaves": leaves,
        "rows": len(part),
        "compiled": model.compiled,
        "us_a_row": round(_us(partial(ours, part)) / len(part), 3),
        "lightgbm_us_a_row": round(_us(partial(theirs, part)) / len(part), 3),
    }


def by_state(*, quick: bool = False) -> list[Row]:
    """Restore time of a card partition by its transactions: from a snapshot, and by a replay of all of them."""
    return [restore_row(transactions) for transactions in ((5_000,) if quick else RESTORED)]


def restore_row(transactions: int) -> Row:
    """Fold, save and load one partition."""
    settings = Settings()
    horizon_us = round(settings.label_grace_days * US_PER_DAY)
    options = CardOptions(load_rates(settings), round(settings.future_tolerance_s * 1e6), horizon_us, horizon_us, 1)
    memory = StoreMemory(settings.store_memory_mb * 1024 * 1024)
    # About 20 transactions a card.
    traffic = Traffic(cards=max(20, transactions // 20), merchants=max(20, transactions // 40), history_days=0)
    frame = traffic.measured(a_while_ago(60), transactions)
    stamp_ms = round(1_000 * time.time())
    records = [
        Record("transactions", 0, offset, stamp_ms, item.key, item.value)
        for offset, item in enumerate(items(frame, traffic.seed, labelled=0.0))
    ]
    key = SnapshotKey("card", 0, "benchmark", {"transactions": "t"}, 1, KERNEL_VERSION)
    BUILD.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(dir=BUILD, prefix="restore-"))
    try:
        state = CardPartition(
            options, MappedStorage(directory / "columns"), RocksStore(directory / "store", memory=memory)
        )
        with _timed() as replayed:
            for start in range(0, transactions, BATCH):
                state.process(records[start : start + BATCH], None)
                state.commit()
        repository = SnapshotRepository(str(directory / "snapshots"))
        with _timed() as dumped:
            dump = state.dump(full=True)
        with _timed() as written:
            saved = repository.writer(key, None).write({"transactions": transactions}, 0, dump)
        assert dump.store is not None
        RocksStore.release(dump.store)
        state.close()
        del dump
        with _timed() as loaded:
            found = repository.newest(key, {"transactions": transactions}, directory / "fetched")
            assert found is not None
            assert found.store is not None
            store = RocksStore.restored(directory / "store", found.store, memory=memory)
            again = CardPartition(options, MappedStorage(directory / "columns"), store, found.state)
        found.close()
        again.close()
    finally:
        shutil.rmtree(directory)
    return {
        "transactions": transactions,
        "snapshot_bytes": saved.size_bytes,
        "fold_s": round(replayed[0], 3),
        "fold_transactions_a_second": round(transactions / replayed[0]),
        "dump_s": round(dumped[0], 4),
        "write_s": round(written[0], 3),
        "load_s": round(loaded[0], 3),
    }


MEASUREMENTS: dict[str, Callable[..., list[Row]]] = {
    "cards": by_cards,
    "window_content": by_window_content,
    "batch": by_batch,
    "model": by_model,
    "explanation": by_explanation,
    "state": by_state,
}


def rows(*, quick: bool = False, only: Sequence[str] = tuple(MEASUREMENTS)) -> dict[str, list[Row]]:
    """All measurements by name, on one core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        # What compiles on its first call compiles here.
        windows_row(100, rows=1_000, batch=100, a_card=2)
        found = {}
        for name in only:
            found[name] = MEASUREMENTS[name](quick=quick)
            gc.collect()
        return found
    finally:
        os.sched_setaffinity(0, cores)


@contextmanager
def _timed() -> Iterator[list[float]]:
    taken = [0.0]
    started_s = time.perf_counter()
    yield taken
    taken[0] = time.perf_counter() - started_s


def _us(call: Callable[[], object], least_s: float = 0.05, repeats: int = 3) -> float:
    """Processor microseconds of a call: the least of a few means, each over ``least_s`` or more."""
    call()
    best = float("inf")
    for _ in range(repeats):
        calls, started_s = 0, time.thread_time()
        while (taken_s := time.thread_time() - started_s) < least_s:
            call()
            calls += 1
        best = min(best, taken_s / calls)
    return 1e6 * best


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default=",".join(MEASUREMENTS), help="measurements, separated by commas")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = rows(quick=given.quick, only=given.only.split(","))
    if given.json:
        print(json.dumps(found, indent=2))
        return
    for name in found:
        print(f"\n{as_text(report.PARTS['kernel'][name.replace('_', '-')](found))}")


if __name__ == "__main__":
    main()
