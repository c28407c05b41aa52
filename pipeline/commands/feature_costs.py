"""The cost of a declaration: time of each transaction, and room of each event."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.features.active import Function, active_functions
from pipeline.features.checked_declaration import MOST_COLUMNS
from pipeline.features.feature_set import FeatureSet, Plan
from pipeline.features.kernel import CardWindows, MerchantWindows
from pipeline.features.timelines.layout import CARD_EVENT_WORDS, MERCHANT_EVENT_WORDS
from schemas.times import US_PER_DAY

EVENTS: Final = 100
"""Events of each entity in 30 days, before its cost is measured."""
_ENTITIES: Final = 100
_ROWS: Final = 500
_ROUNDS: Final = 5


class Cost(NamedTuple):
    """The cost of the features of one entity."""

    built_in_ns: float
    """Nanoseconds a transaction of the built-in ones, with `EVENTS` events in 30 days."""
    groups_ns: dict[str, float]
    """Nanoseconds more of each group of declared windows, by the name of its first feature."""
    event_bytes: int
    """Bytes of an event in its windows."""


def costs(features: FeatureSet) -> dict[str, Cost]:
    """Measure the kernels of a declaration by entity: medians of a few rounds."""
    random = np.random.default_rng(0)
    n = _ENTITIES * EVENTS + _ROUNDS * _ROWS
    entity = random.integers(1, _ENTITIES + 1, n)
    keys, amount = np.column_stack([entity, entity]), random.integers(100, 10_000, n)
    time_us, counts = np.sort(random.integers(0, 30 * US_PER_DAY, n)), np.ones(n, np.bool_)
    hour, weekday = random.random(n) * 24, random.integers(0, 7, n).astype(np.float64)
    values = random.integers(0, 20, (n, len(features.card_inputs) + len(features.merchant_inputs))).astype(np.float64)
    zeros = {kind: np.zeros(n, kind) for kind in (np.uint8, np.uint64, np.bool_, np.int8, np.int64)}

    def cards(plan: Plan, width: int) -> float:
        windows = CardWindows(None, plan, width, features.horizon_us)
        columns: tuple[Any, ...] = (keys, keys, time_us, amount, counts, hour, weekday, values[:, : len(plan.scales)])
        return _measured(lambda rows: windows.profile(*(column[rows] for column in columns)))

    def merchants(plan: Plan, width: int) -> float:
        windows = MerchantWindows(None, plan, width, features.horizon_us)
        columns: tuple[Any, ...] = (
            zeros[np.uint8], keys, zeros[np.uint64], time_us, amount, counts, zeros[np.bool_], zeros[np.int8],
            zeros[np.int64], values[:, : len(plan.scales)],
        )  # fmt: skip
        return _measured(lambda rows: windows.profile(*(column[rows] for column in columns)))

    card, merchant = features.card_plan, features.merchant_plan
    return {
        "card": _cost(cards, card, features.card_features, int(CARD_EVENT_WORDS)),
        "merchant": _cost(merchants, merchant, features.merchant_features, int(MERCHANT_EVENT_WORDS)),
    }


def function_ns(features: FeatureSet) -> dict[str, float]:
    """Measure the functions of this process' declaration: nanoseconds a transaction, by feature."""
    columns = list(np.random.default_rng(0).normal(size=(MOST_COLUMNS, _ENTITIES * EVENTS + _ROUNDS * _ROWS)))
    found = {}
    for function in features.functions:
        made = partial(_called, active_functions()[function.name], columns[: len(function.inputs)])
        found[function.feature] = _measured(made)
    return found


def _called(function: Function, columns: Sequence[NDArray[np.float64]], rows: slice) -> object:
    return function(*(column[rows] for column in columns))


def _cost(measured: Callable[[Plan, int], float], plan: Plan, names: Sequence[str], words: int) -> Cost:
    none, width = plan._replace(groups=plan.groups[:0], ratios=plan.ratios[:0]), len(plan.built_in)
    built_in_ns = measured(none, width)
    groups_ns = {}
    for aggregate, given, column, first, end in plan.groups.tolist():
        alone = none._replace(groups=np.array([(aggregate, given, width, first, end)]))
        groups_ns[names[column]] = max(measured(alone, width + end - first) - built_in_ns, 0.0)
    return Cost(built_in_ns, groups_ns, 8 * (words + len(plan.scales)))


def _measured(profile: Callable[[slice], object]) -> float:
    """Return nanoseconds a row, once each entity has its events."""
    first = _ENTITIES * EVENTS
    profile(slice(0, first))
    took = []
    for round_ in range(_ROUNDS):
        start = time.perf_counter_ns()
        profile(slice(first + round_ * _ROWS, first + (round_ + 1) * _ROWS))
        took.append((time.perf_counter_ns() - start) / _ROWS)
    return median(took)
