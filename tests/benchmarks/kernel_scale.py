"""How the kernels grow, each in one process on one core: windows with cards, model size, restores with state.

Part ``kernel`` of ``make bench``. Every function gives rows for ``build/bench.json``.
"""

import gc
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import msgspec
import numpy as np
import psutil
from numpy.typing import NDArray

from pipeline.decision.rules import RuleSet
from pipeline.engine.cards.card_partition import CardPartition
from pipeline.engine.encoding import row_columns as col
from pipeline.engine.records.subjects import Subjects
from pipeline.engine.scores.decisions import rule_hits
from pipeline.features.catalogue import DEFAULT_FEATURES, FEATURES, KERNEL_VERSION
from pipeline.features.kernel import CardWindows, MerchantWindows
from pipeline.scoring.kinds import KINDS
from pipeline.scoring.lightgbm_model import LightGBMModel
from pipeline.settings import Settings
from pipeline.state.manifest import SnapshotKey
from pipeline.state.mapped import MappedStorage
from pipeline.state.snapshots import SnapshotRepository
from pipeline.state.store import RocksStore, StoreMemory
from schemas.records import Record
from schemas.times import US_PER_DAY
from tests.benchmarks.alone import default_options, one_core, scratch
from tests.benchmarks.forests import forest, training_matrix
from tests.benchmarks.stages import Stages
from tests.benchmarks.traffic import Traffic, a_while_ago, items
from tests.helpers.champion import rule
from tests.helpers.keys import keys

Row = dict[str, Any]
START_US = 1_700_000_000_000_000
BYTES_A_CARD = 700
"""More than a card takes here, merchants and growth by half included: what does not fit into memory is left out."""
MEMORY_SHARE = 0.5
BATCH = 2_000
FILL_A_CARD = 2
MERCHANTS_A_CARD = 0.1


@dataclass(frozen=True, slots=True)
class Options:
    """What is measured."""

    only: tuple[str, ...] = ("cards", "window_content", "batch", "model", "explanation", "rules", "state")
    cards: tuple[int, ...] = (10_000, 100_000, 1_000_000, 5_000_000)
    rows: int = 500_000
    """Measured with each number of cards."""
    contents: tuple[int, ...] = (3, 30, 300, 3_000)
    """Transactions of a card in the longest window."""
    content_rows: int = 600_000
    """Of all cards, in that window."""
    batches: tuple[int, ...] = (1, 10, 100, 500, 2_000, 10_000)
    batch_rows: int = 200_000
    models: tuple[tuple[int, int], ...] = ((50, 31), (200, 31), (200, 63), (400, 63), (200, 127))
    """Trees and leaves."""
    model_rows: tuple[int, ...] = (1, 10, 100, 2_000)
    """Scored at a time."""
    explained_rows: tuple[int, ...] = (1, 50)
    rules: tuple[int, ...] = (50, 500)
    ruled_rows: tuple[int, ...] = (200, 2_000)
    """Transactions that rules are evaluated over at a time."""
    training: tuple[int, int] = (1_000, 65)
    """Cards and days of the history that the models are trained on."""
    restored: tuple[int, ...] = (50_000, 200_000, 800_000)
    """Transactions."""


QUICK = Options(
    cards=(10_000, 100_000),
    rows=100_000,
    contents=(3, 30),
    content_rows=30_000,
    batches=(100, 2_000),
    batch_rows=20_000,
    models=((10, 7),),
    model_rows=(10, 100, 2_000),
    explained_rows=(50,),
    rules=(50,),
    ruled_rows=(200,),
    training=(300, 40),
    restored=(5_000,),
)


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


def by_cards(options: Options) -> list[Row]:
    """Throughput and bytes by the number of distinct cards; those that memory does not hold are left out."""
    room = psutil.virtual_memory().available * MEMORY_SHARE
    return [
        windows_row(cards, rows=options.rows, batch=BATCH, a_card=FILL_A_CARD)
        for cards in options.cards
        if cards * BYTES_A_CARD <= room
    ]


def by_window_content(options: Options) -> list[Row]:
    """Throughput by how many transactions of a card the longest window holds.

    The windows' lengths are constants of the compiled kernel; one that is k times as long holds k times as much, which
    is what its cost depends on.
    """
    total = options.content_rows
    return [
        windows_row(max(10, total // content), rows=total // 3, batch=BATCH, a_card=content)
        for content in options.contents
    ]


def by_batch(options: Options) -> list[Row]:
    """Throughput by the rows of a batch."""
    return [windows_row(20_000, rows=options.batch_rows, batch=batch, a_card=FILL_A_CARD) for batch in options.batches]


def by_model(options: Options) -> list[Row]:
    """Time to score by trees, leaves and rows at a time, compiled where possible, and by LightGBM."""
    return [
        _model_row(size, model, part, model.logit, partial(model._booster.predict, raw_score=True, num_threads=1))
        for size, model, part in _models_and_rows(options, options.model_rows)
    ]


def by_rules(options: Options) -> list[Row]:
    """Time of rules over a batch with the texts that they read, from the producers' bytes; without the models'."""
    generator = random.Random(5)
    numbers = [name for name in DEFAULT_FEATURES if name not in ("amount", "hour")]
    found = []
    for count, rows in product(options.rules, options.ruled_rows):
        rules = RuleSet(rule(f"r{number}", _condition(generator, numbers)) for number in range(count))
        features = np.random.default_rng(5).exponential(10.0, (rows, len(FEATURES)))
        originals = [
            msgspec.json.encode(
                {
                    "country": ("DE", "FR", "IT")[row % 3],
                    "channel": ("web", "pos")[row % 2],
                    "mcc": str(generator.randrange(5_400, 5_420)),
                    "device_id": f"device-{row}",
                }
            )
            for row in range(rows)
        ]
        merchants = [f"merchant-{generator.randrange(500)}".encode() for _ in range(rows)]
        subjects = Subjects.from_columns({col.ID: [b"t"] * rows, col.MERCHANT: merchants, col.ORIGINAL: originals}, {})
        logits, score = np.zeros((rows, len(KINDS))), np.random.default_rng(5).random(rows)
        hits = rule_hits(rules, features, logits, score, subjects)
        found.append(
            {
                "rules": count,
                "rows": rows,
                "hits_a_row": round(sum(map(len, hits)) / rows, 2),
                "us_a_row": round(_us(partial(rule_hits, rules, features, logits, score, subjects)) / rows, 3),
                "texts_us_a_row": round(_us(partial(subjects.text_lists, rules.texts)) / rows, 3),
            }
        )
    return found


def _condition(generator: random.Random, numbers: Sequence[str]) -> str:
    """Return a condition of three parts, which few rows fulfil."""
    first, second = generator.sample(numbers, 2)
    least, code = generator.randrange(20, 60), generator.randrange(5_400, 5_420)
    return generator.choice(
        [
            f"{first} > {least} and {second} > 10 and country not in ('DE', 'FR')",
            f"channel = 'web' and {first} > {least} and {second} between 5 and {least}",
            f"mcc in ('{code}', '{code + 1}') and {first} > {least} and amount > 10",
            f"{first} / {second} > {least} and channel = 'pos' and score > 0.9",
            f"merchant_id like 'merchant-{code % 10}%' and {first} > {least} and hour < 5",
            f"case when country is null then {first} else {second} end > {least} and amount > 20",
        ]
    )


def by_explanation(options: Options) -> list[Row]:
    """Time to explain by trees, leaves and rows at a time, compiled where possible, and by LightGBM."""
    return [
        _model_row(
            size, model, part, model.contributions, partial(model._booster.predict, pred_contrib=True, num_threads=1)
        )
        for size, model, part in _models_and_rows(options, options.explained_rows)
    ]


def _models_and_rows(
    options: Options, counts: Sequence[int]
) -> Iterator[tuple[tuple[int, int], LightGBMModel, NDArray[np.float64]]]:
    cards, days = options.training
    features = training_matrix(cards, days)[0]
    for size in options.models:
        model = forest(*size, cards=cards, days=days)
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


def by_state(options: Options) -> list[Row]:
    """Restore time of a card partition by its transactions: from a snapshot, and by a replay of all of them."""
    return [restore_row(transactions) for transactions in options.restored]


def restore_row(transactions: int) -> Row:
    """Fold, save and load one partition."""
    options, _ = default_options(1)
    memory = StoreMemory(Settings().store_memory_mb * 1024 * 1024)
    # About 20 transactions a card.
    traffic = Traffic(cards=max(20, transactions // 20), merchants=max(20, transactions // 40), history_days=0)
    frame = traffic.measured(a_while_ago(60), transactions)
    stamp_ms = round(1_000 * time.time())
    records = [
        Record("transactions", 0, offset, stamp_ms, item.key, item.value)
        for offset, item in enumerate(items(frame, traffic.seed, labelled=0.0))
    ]
    key = SnapshotKey("card", 0, "benchmark", {"transactions": "t"}, 1, KERNEL_VERSION)
    with scratch("restore-") as directory:
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
            store = RocksStore(directory / "store", frozen=found.store, memory=memory)
            again = CardPartition(options, MappedStorage(directory / "columns"), store, found.state)
        found.close()
        again.close()
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
    "rules": by_rules,
    "state": by_state,
}


def measure(options: Options, _tell: Callable[[str], None]) -> dict[str, list[Row]]:
    """What goes into ``build/bench.json``: rows of each measurement by name, taken on one core."""
    with one_core(None):
        # What compiles on its first call compiles here.
        windows_row(100, rows=1_000, batch=100, a_card=2)
        found = {}
        for name in options.only:
            found[name] = MEASUREMENTS[name](options)
            gc.collect()
        return found


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
