"""Totals of events, exact in integers: of a chunk, of a run of rows, of a window."""

from typing import Any, Final

import numpy as np

from pipeline.features.compiled import inlined, wide_product
from pipeline.features.timelines.layout import (
    FLAGGED_SUM,
    FLAGS,
    LARGEST,
    NEVER,
    SMALLEST,
    SQUARE_HIGH,
    SQUARE_LOW,
    SUM,
    TOTALS_WORDS,
)

_TWO_64: Final = 18446744073709551616.0


@inlined
def add_wide(a_high: Any, a_low: Any, b_high: Any, b_low: Any) -> Any:
    """128-bit sum; the words are signed here and everywhere in the tables, and count as unsigned."""
    low = a_low + b_low
    return a_high + b_high + (1 if np.uint64(low) < np.uint64(b_low) else 0), low


@inlined
def standard_deviation(count: Any, total: Any, signed_high: Any, signed_low: Any) -> float:
    """Population standard deviation from exact sums: sqrt(n * sum(a^2) - sum(a)^2) / n."""
    n, high, low = np.uint64(count), np.uint64(signed_high), np.uint64(signed_low)
    scaled_high, scaled_low = wide_product(n, low)
    scaled_high = scaled_high + n * high
    square_high, square_low = wide_product(np.uint64(total), np.uint64(total))
    borrow = np.uint64(1) if scaled_low < square_low else np.uint64(0)
    numerator = np.float64(scaled_high - square_high - borrow) * _TWO_64 + np.float64(scaled_low - square_low)
    return float(np.sqrt(numerator) / count)


@inlined
def clear_totals(table: Any, at: Any) -> None:
    """Totals of no events."""
    table[at : at + TOTALS_WORDS] = 0
    table[at + LARGEST] = -1
    table[at + SMALLEST] = NEVER


@inlined
def with_event(totals: Any, doubled: Any) -> Any:
    """Totals (in their order) with one more event, by its row's amount and flag."""
    largest, smallest, sum_, high, low, flags, flagged_sum = totals
    amount, flag = doubled >> 1, doubled & 1
    square_high, square_low = wide_product(np.uint64(amount), np.uint64(amount))
    high, low = add_wide(high, low, np.int64(square_high), np.int64(square_low))
    return (
        max(largest, amount), min(smallest, amount), sum_ + amount, high, low, flags + flag,
        flagged_sum + (amount & -flag),
    )  # fmt: skip


@inlined
def add_event(table: Any, at: Any, doubled: Any) -> None:
    """Take an event, by its row's amount and flag, into totals that stand in a table."""
    totals = (
        table[at + LARGEST], table[at + SMALLEST], table[at + SUM], table[at + SQUARE_HIGH], table[at + SQUARE_LOW],
        table[at + FLAGS], table[at + FLAGGED_SUM],
    )  # fmt: skip
    largest, smallest, sum_, high, low, flags, flagged_sum = with_event(totals, doubled)
    table[at + LARGEST], table[at + SMALLEST], table[at + SUM] = largest, smallest, sum_
    table[at + SQUARE_HIGH], table[at + SQUARE_LOW] = high, low
    table[at + FLAGS], table[at + FLAGGED_SUM] = flags, flagged_sum


@inlined
def with_totals(totals: Any, table: Any, at: Any) -> Any:
    """Totals with those that stand in a table."""
    largest, smallest, sum_, high, low, flags, flagged_sum = totals
    high, low = add_wide(high, low, table[at + SQUARE_HIGH], table[at + SQUARE_LOW])
    return (
        max(largest, table[at + LARGEST]), min(smallest, table[at + SMALLEST]), sum_ + table[at + SUM], high, low,
        flags + table[at + FLAGS], flagged_sum + table[at + FLAGGED_SUM],
    )  # fmt: skip
