"""Declared windows equal a slow reference in whole numbers, to the last bit, whatever the history and its batches."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from operator import itemgetter
from typing import Final, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.features.aggregates import AGGREGATES
from pipeline.features.built_in import CARD, CASE_RETENTION_US, LATENESS_US, MERCHANT
from pipeline.features.declared_windows import MOST_DISTINCT, whole_values
from pipeline.features.feature_set import Plan
from pipeline.features.kernel import CardWindows, MerchantWindows
from pipeline.features.timelines.layout import CHUNK, CHUNK_WORDS, META, NO_VALUE
from schemas.times import US_PER_DAY, US_PER_HOUR
from tests.helpers.timelines import Saved, Windows, contents
from tests.property.strategies import busy_card_log, busy_merchant_log
from tests.property.test_features import profile_cards, profile_merchants

START_US: Final = 1_700_000_000_000_000
WINDOWS_US: Final = (60_000_000, US_PER_HOUR, US_PER_DAY, 7 * US_PER_DAY, 30 * US_PER_DAY, 60 * US_PER_DAY)
SCALES: Final = (1e6, 1.0, 60.0, 1e6)
"""Scales of a number, a text's code, an hour, and of numbers so large that their squares need more than 128 bits."""
HORIZON_US: Final = WINDOWS_US[-1] + LATENESS_US
CASES: Final = [
    *((name, given) for name in AGGREGATES for given in range(len(SCALES))),
    # A share is of those that a condition chooses.
    *((name, -1) for name in AGGREGATES if name != "share"),
]
SIN: Final = [round(2**30 * math.sin(2 * math.pi * m / 1440)) for m in range(1440)]
COS: Final = [round(2**30 * math.cos(2 * math.pi * m / 1440)) for m in range(1440)]


def all_plans(built_in: int, first: int) -> tuple[Plan, int]:
    """A plan of all aggregates of all values, and the number of its columns."""
    groups, column = [], first
    for k, (name, given) in enumerate(CASES):
        start = 0 if given == 0 else k % 3
        end = len(WINDOWS_US) - (0 if given == 0 else k % 2)
        groups.append((AGGREGATES[name].code, given, column, start, end))
        column += end - start
    pairs = [(k, j) for j, k in enumerate(range(0, built_in, built_in // first))][:first]
    ratios = [(column, first, first + 1), (column + 1, column, 0), (column + 2, first + 6, column)]
    return (
        Plan(
            np.array(pairs, np.int64),
            np.array(groups, np.int64),
            np.array(WINDOWS_US, np.int64),
            np.array(ratios, np.int64),
            np.array(SCALES),
        ),
        column + 3,
    )


class Event(NamedTuple):
    time: int
    amount: int
    values: tuple[int | None, ...]


class Log(NamedTuple):
    """A history of a few entities."""

    keys: NDArray[np.int64]
    times: NDArray[np.int64]
    amounts: NDArray[np.int64]
    counts: NDArray[np.bool_]
    inputs: NDArray[np.float64]


def random_log(seed: int, size: int, entities: int = 2, days: int = 100) -> Log:
    generator = np.random.default_rng(seed)
    gaps = generator.choice([0, 1, 40_000_000, 2 * days * US_PER_DAY // size], size, p=[0.15, 0.05, 0.3, 0.5])
    late = generator.random(size)
    times = START_US + np.cumsum(gaps)
    times -= np.where(late < 0.2, generator.integers(0, 3 * US_PER_DAY, size), 0)
    times -= np.where(late < 0.02, generator.integers(0, 80 * US_PER_DAY, size), 0)
    inputs = np.column_stack(
        [
            generator.choice([-1.5, -0.0000005, 0.0, 1e-6, 2.5e-6, 3.5e-6, 1234.567891, -9e9, 9e9, -1e10, 1e300], size),
            np.where(generator.random(size) < 0.5, generator.integers(0, 2**52, size), generator.integers(0, 9, size)),
            np.where(
                generator.random(size) < 0.5, 3.0 + 12 * generator.integers(0, 2, size), generator.random(size) * 24
            ),
            generator.normal(0, 3e9, size),
        ]
    )
    spoiled = generator.random(inputs.shape)
    inputs[spoiled < 0.3], inputs[spoiled < 0.02], inputs[spoiled < 0.01] = np.nan, np.inf, -np.inf
    keys = generator.integers(-(2**62), 2**62, (entities, 2))
    return Log(
        keys[np.minimum(generator.integers(0, 3 * entities, size), entities - 1)],
        times,
        generator.integers(0, 2**40, size),
        generator.random(size) < 0.9,
        inputs,
    )


def whole(value: float, scale: float) -> int | None:
    step = value * scale
    return round(step) if math.isfinite(step) and abs(step) < 2**53 else None


def wide(number: int) -> float:
    """As the kernel rounds: 64 bits once, more of them as two words."""
    if -(2**63) <= number < 2**63:
        return float(number)
    return float(number >> 64) * 2.0**64 + float(number % 2**64)


def deviation(values: Sequence[int]) -> float:
    n, total, squares = len(values), sum(values), sum(value * value for value in values)
    if squares >> 64 < 2**62 // n:
        return math.sqrt(wide_unsigned(n * squares - total * total)) / n
    mean = wide(total) / n
    return math.sqrt(max(wide_unsigned(squares) / n - mean * mean, 0.0))


def wide_unsigned(number: int) -> float:
    return float(number >> 64) * 2.0**64 + float(number % 2**64)


def statistic(name: str, events: Sequence[tuple[int, int | None]], now: int, own: int | None, scale: float) -> float:
    """One aggregate of (time, value) of a window, in log order within each instant."""
    values = [value for _, value in events if value is not None]
    times = [time for time, value in events if value is not None]
    if name == "count":
        return float(len(values))
    if name == "sum":
        return wide(sum(values)) / scale
    if name == "share":
        return len(values) / len(events) if events else math.nan
    if name == "distinct":
        return float(min(len(set(values)), 1_000))
    if name == "new":
        return math.nan if own is None else float(own not in values)
    if name == "usual_hour":
        newest = sorted(events, key=itemgetter(0))[-1_000:]
        return distance([value for _, value in newest if value is not None], own)
    if not values:
        return math.nan
    return {
        "mean": lambda: wide(sum(values)) / len(values) / scale,
        "std": lambda: deviation(values) / scale,
        "min": lambda: min(values) / scale,
        "max": lambda: max(values) / scale,
        "seconds_since_last": lambda: (now - max(times)) / 1e6,
        "seconds_since_first": lambda: (now - min(times)) / 1e6,
    }[name]()


def distance(values: Sequence[int], own: int | None) -> float:
    sine, cosine = sum(SIN[value % 1440] for value in values), sum(COS[value % 1440] for value in values)
    if own is None or sine == cosine == 0:
        return math.nan
    apart = abs(own % 1440 / 60 - math.atan2(sine, cosine) * (12 / math.pi))
    apart = apart - 24 if apart >= 24 else apart
    return 24 - apart if apart > 12 else apart


def row_of(event: Event, history: Sequence[Event], plan: Plan, row: list[float]) -> list[float]:
    """A row with its declared features."""
    names = {aggregate.code: name for name, aggregate in AGGREGATES.items()}
    for code, given, column, start, end in plan.groups.tolist():
        own, scale = (event.amount, 100.0) if given < 0 else (event.values[given], float(plan.scales[given]))
        for k, window in enumerate(plan.windows_us[start:end].tolist()):
            inside = [
                (of.time, of.amount if given < 0 else of.values[given])
                for of in history
                if of.time > event.time - window
            ]
            row[column + k] = statistic(names[code], inside, event.time, own, scale)
    for column, first, second in plan.ratios.tolist():
        row[column] = row[first] / row[second] if row[second] > 0 else math.nan
    return row


def reference(log: Log, plan: Plan, got: NDArray[np.float64], step: int) -> Iterator[list[float]]:
    """The declared features of every ``step``-th row; of built-in ones, which ratios read, ``got`` is believed."""
    histories: dict[tuple[int, int], list[Event]] = {}
    newest = -(2**62)
    for i, (key, time, amount) in enumerate(
        zip(log.keys.tolist(), log.times.tolist(), log.amounts.tolist(), strict=True)
    ):
        floor = newest - HORIZON_US
        event = Event(time, amount, tuple(map(whole, log.inputs[i].tolist(), plan.scales.tolist())))
        history = histories.setdefault(tuple(key), [])
        if i % step == 0:
            yield row_of(event, [of for of in history if floor < of.time <= time], plan, got[i].tolist())
        if log.counts[i] and time > floor:
            history.append(event)
        newest = max(newest, time)


def profile(windows: Windows, log: Log, part: slice) -> NDArray[np.float64]:
    keys, n = log.keys[part], len(log.keys[part])
    times, amounts, counts, inputs = log.times[part], log.amounts[part], log.counts[part], log.inputs[part]
    if isinstance(windows, CardWindows):
        hour = np.zeros(n)
        return windows.profile(keys, keys, times, amounts, counts, hour, hour, inputs).features
    return windows.profile(
        np.zeros(n, np.uint8), keys, np.arange(n, dtype=np.uint64), times, amounts, counts, np.zeros(n, np.bool_),
        np.zeros(n, np.int8), times, inputs,
    )  # fmt: skip


def of_cards(horizon_us: int = HORIZON_US) -> CardWindows:
    plan, width = all_plans(len(CARD), 5)
    return CardWindows(None, plan, width, horizon_us)


def of_merchants(horizon_us: int = HORIZON_US) -> MerchantWindows:
    plan, width = all_plans(len(MERCHANT), 5)
    return MerchantWindows(None, plan, width, horizon_us)


def assert_equal(got: NDArray[np.float64], want: Sequence[Sequence[float]], plan: Plan) -> None:
    expected = np.array(want)
    same = (got == expected) | (np.isnan(got) & np.isnan(expected))
    if not same.all():
        row, column = np.argwhere(~same)[0]
        case = [CASES[k] for k, group in enumerate(plan.groups) if group[2] <= column < group[2] + group[4] - group[3]]
        pytest.fail(f"row {row}, column {column} {case}: {got[row, column]!r}, not {expected[row, column]!r}")


def in_batches(windows: Windows, log: Log, seed: int) -> tuple[NDArray[np.float64], Windows]:
    """Features of a log in random batches, with commits, rollbacks, dumps and loads between them."""
    generator = np.random.default_rng(seed)
    edges = sorted({0, len(log.times), *generator.integers(0, len(log.times), 12).tolist()})
    saved, found = Saved(), []
    saved.take(windows.dump(full=True))
    for start, end in pairwise(edges):
        operation = generator.choice(["commit", "rollback", "load"])
        if operation == "rollback":
            before = windows.contents(), contents(windows)
            profile(windows, log, slice(start, end))
            windows.rollback()
            assert (windows.contents(), contents(windows)) == before
        found.append(profile(windows, log, slice(start, end)))
        windows.commit()
        if operation == "load":
            saved.take(windows.dump(full=bool(generator.random() < 0.5)))
            held = windows.contents()
            windows = of_cards() if isinstance(windows, CardWindows) else of_merchants()
            windows.load(saved.values, saved.columns)
            assert windows.contents() == held
    contents(windows)
    return np.vstack(found), windows


@pytest.mark.parametrize("make", [of_cards, of_merchants])
@pytest.mark.parametrize(
    ("seed", "size", "entities", "step"), [(1, 150, 3, 1), (2, 250, 20, 3), (3, 700, 1, 25), (4, 2_500, 1, 249)]
)
def test_declared_windows_equal_the_reference(
    make: Callable[[], Windows], seed: int, size: int, entities: int, step: int
) -> None:
    log, plan = random_log(seed, size, entities), make().plan
    got, _ = in_batches(make(), log, seed)
    assert_equal(got[::step], list(reference(log, plan, got, step)), plan)
    assert profile(make(), log, slice(None)).tobytes() == got.tobytes()


def built_in_plan(columns: int, inputs: int) -> Plan:
    """All built-in features, beside values that nothing reads."""
    nothing = simple("count", ())
    every = np.column_stack([np.arange(columns), np.arange(columns)])
    return nothing._replace(built_in=every, groups=nothing.groups[:0], scales=np.ones(inputs))


def test_values_leave_the_built_in_features_of_cards_alone() -> None:
    log = busy_card_log(1, 900)
    windows = [CardWindows(None, built_in_plan(len(CARD), inputs), len(CARD), HORIZON_US) for inputs in (0, 16)]
    without, beside = [profile_cards(of)(log).tobytes() for of in windows]
    assert without == beside
    windows[1].rollback()
    assert contents(windows[1]) == {}


def test_values_leave_the_built_in_features_of_merchants_alone() -> None:
    """With labels and outliers, which are found by the rows of events."""
    log = busy_merchant_log(1, 900)
    windows = [MerchantWindows(None, built_in_plan(len(MERCHANT), k), len(MERCHANT), HORIZON_US) for k in (0, 16)]
    without, beside = [profile_merchants(of)(log).tobytes() for of in windows]
    assert without == beside
    windows[1].rollback()
    assert contents(windows[1]) == {}


def test_features_of_merchants_stand_in_the_last_columns_of_chosen_rows() -> None:
    log = of_one(3, np.ones((3, 1)))
    out, zeros = np.full((4, 3), -1.0), np.zeros(3, np.bool_)
    MerchantWindows(None, simple("count", (1_000_000, US_PER_DAY)), 2).profile(
        np.array([0, 0, 1], np.uint8), log.keys, np.zeros(3, np.uint64), log.times, log.amounts, log.counts, zeros,
        np.ones(3, np.int8), log.times, log.inputs, out, np.array([2, 0, 1]),
    )  # fmt: skip
    assert out.tolist()[0] == [-1.0, 0.0, 1.0]
    assert out.tolist()[2:] == [[-1.0, 0.0, 0.0], [-1.0] * 3]
    assert out[1, 0] == -1.0
    assert np.isnan(out[1, 1:]).all()


def test_inputs_become_whole_numbers() -> None:
    scales = np.array([100.0])
    given = [0.125, 0.135, -0.125, np.nan, np.inf, -np.inf, 1e308, 2.0**53 / 100, -(2.0**53) / 100, 2.0**52 / 100]
    got = whole_values(np.array(given)[:, None], len(given), scales)[:, 0].tolist()
    assert got == [12, 14, -12, *[NO_VALUE] * 6, 2**52]
    assert whole_values(None, 2, scales).tolist() == [[NO_VALUE], [NO_VALUE]]
    assert whole_values(None, 2, scales[:0]).shape == (2, 0)
    # Rows of labels hold whatever was in memory; warnings are errors here.
    signalling = np.array([[0x7FF0000000000001]]).view(np.float64)
    assert whole_values(signalling, 1, scales).tolist() == [[NO_VALUE]]
    with pytest.raises(ValueError, match=r"shape \(2, 2\), not \(2, 1\)"):
        whole_values(np.zeros((2, 2)), 2, scales)


def simple(name: str, windows_us: Sequence[int], inputs: int = 1) -> Plan:
    """One aggregate of the first input, and nothing else."""
    return Plan(
        np.zeros((0, 2), np.int64),
        np.array([(AGGREGATES[name].code, 0, 0, 0, len(windows_us))], np.int64),
        np.array(windows_us, np.int64),
        np.zeros((0, 3), np.int64),
        np.ones(inputs),
    )


def of_one(size: int, inputs: NDArray[np.float64]) -> Log:
    """Events of one entity, a second apart."""
    return Log(
        np.ones((size, 2), np.int64), START_US + 1_000_000 * np.arange(size), np.ones(size, np.int64),
        np.ones(size, np.bool_), inputs,
    )  # fmt: skip


def test_different_values_are_counted_up_to_a_number() -> None:
    size = 2_500
    log = of_one(size, (np.arange(size) * 2**32 // 2 % 2**52).astype(float)[:, None])
    got = profile(MerchantWindows(None, simple("distinct", (600_000_000, US_PER_DAY)), 2), log, slice(None))
    assert got[:, 0].tolist() == [float(min(k, 599)) for k in range(size)]
    assert got[:, 1].tolist() == [float(min(k, MOST_DISTINCT)) for k in range(size)]


@pytest.mark.parametrize("horizon_us", [HORIZON_US, CASE_RETENTION_US])
def test_a_horizon_of_their_own_changes_events_and_not_cases(horizon_us: int) -> None:
    """A card that returns after 50 days opens a case; its earlier events are held by the longer horizon alone."""
    plan = simple("count", (60 * US_PER_DAY,))
    windows = CardWindows(None, plan, 1, horizon_us)
    log = of_one(4, np.ones((4, 1)))
    log.times[2:] += 50 * US_PER_DAY
    log.keys[2] = 7
    keys, zeros = log.keys, np.zeros(4)
    profiled = windows.profile(keys, keys, log.times, log.amounts, log.counts, zeros, zeros, log.inputs)
    assert profiled.case_sequence.tolist() == [1, 2, 1, 1]
    assert profiled.features[:, 0].tolist() == [0.0, 1.0, 0.0, 2.0 if horizon_us == HORIZON_US else 0.0]
    windows.commit()
    saved = Saved()
    saved.take(windows.dump(full=True))
    longer = CardWindows(None, plan, 1, HORIZON_US)
    longer.load(saved.values, saved.columns)
    assert longer.state.meta[META.horizon] == HORIZON_US


@pytest.mark.parametrize("labels", [False, True])
def test_one_row_never_needs_more_of_the_journal_than_is_reserved(labels: bool) -> None:
    """Late rows that split the largest chunks, of 18 words, and of labels."""
    size = 140_000
    windows = MerchantWindows(None, simple("count", (1,), 16), 1, HORIZON_US)
    log = of_one(size, np.empty((size, 0)))
    kind = np.full(size + 200, labels, np.uint8)
    late = np.random.default_rng(5).integers(START_US, log.times[-1], 200)
    times = np.concatenate([log.times, late])

    def enter(part: slice) -> None:
        n = len(times[part])
        zeros = np.zeros(n, np.int64)
        windows.profile(
            kind[part], np.ones((n, 2), np.int64), np.arange(size + 200, dtype=np.uint64)[part], times[part], zeros + 1,
            np.ones(n, np.bool_), np.zeros(n, np.bool_), np.ones(n, np.int8), zeros,
        )  # fmt: skip

    for start in range(0, size, 10_000):
        enter(slice(start, start + 10_000))
        windows.commit()
    before, needed = windows.contents(), []
    assert (windows.state.label_chunks if labels else windows.state.chunks)[
        CHUNK.capacity :: CHUNK_WORDS
    ].max() == 2_048
    for k in range(size, size + 200):
        used = int(windows.state.meta[META.journal_end])
        enter(slice(k, k + 1))
        needed.append(int(windows.state.meta[META.journal_end]) - used)
    words = 8 if labels else 18
    assert 1_900 * words < max(needed) <= windows.state.meta[META.journal_reserve]
    windows.rollback()
    assert windows.contents() == before


def test_a_plan_has_to_fit_its_columns() -> None:
    with pytest.raises(ValueError, match="writes column 1, and there are 1"):
        CardWindows(None, simple("count", (1, 2)), 1)
    with pytest.raises(ValueError, match=r"does not write the columns \[2\]"):
        MerchantWindows(None, simple("count", (1, 2)), 3)
    windows = CardWindows(None, simple("count", (1, 2)), 3)
    assert np.isnan(profile(windows, of_one(2, np.ones((2, 1))), slice(None))[:, 2]).all()
    log = of_one(1, np.ones((1, 1)))
    with pytest.raises(ValueError, match="have 3 columns, more than 2"):
        windows.profile(log.keys, log.keys, log.times, log.amounts, log.counts, np.zeros(1), np.zeros(1), None, 2)
