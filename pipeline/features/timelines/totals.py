"""Totals of events, exact in integers: of a chunk, of a run of rows, of a window."""

from typing import Any, Final

import numpy as np

from pipeline.features.compiled import inlined, wide_product
from pipeline.features.timelines.layout import NEVER, TOTAL, TOTALS_WORDS

TWO_64: Final = 18446744073709551616.0


@inlined
def add_wide(a_high: Any, a_low: Any, b_high: Any, b_low: Any) -> Any:
    """128-bit sum; the words are signed here and everywhere in the tables, and count as unsigned."""
    low = a_low + b_low
    return a_high + b_high + (1 if np.uint64(low) < np.uint64(b_low) else 0), low


@inlined
def standard_deviation(count: Any, total: Any, signed_high: Any, signed_low: Any) -> float:
    """Population standard deviation from exact sums: sqrt(n * sum(a^2) - sum(a)^2) / n.

    Args:
        count: Number of amounts; for 0 the result is NaN.
        total: Their sum, in minor units.
        signed_high: High 64 bits of the sum of their squares, signed as the tables hold them.
        signed_low: Low 64 bits, likewise.

    Returns:
        In minor units.
    """
    n, high, low = np.uint64(count), np.uint64(signed_high), np.uint64(signed_low)
    scaled_high, scaled_low = wide_product(n, low)
    scaled_high = scaled_high + n * high
    square_high, square_low = wide_product(np.uint64(total), np.uint64(total))
    borrow = np.uint64(1) if scaled_low < square_low else np.uint64(0)
    numerator = np.float64(scaled_high - square_high - borrow) * TWO_64 + np.float64(scaled_low - square_low)
    return float(np.sqrt(numerator) / count)


@inlined
def clear_totals(table: Any, at: Any) -> None:
    """Totals of no events."""
    table[at : at + TOTALS_WORDS] = 0
    table[at + TOTAL.largest] = -1
    table[at + TOTAL.smallest] = NEVER


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
        table[at + TOTAL.largest], table[at + TOTAL.smallest], table[at + TOTAL.sum], table[at + TOTAL.square_high],
        table[at + TOTAL.square_low], table[at + TOTAL.flags], table[at + TOTAL.flagged_sum],
    )  # fmt: skip
    largest, smallest, sum_, high, low, flags, flagged_sum = with_event(totals, doubled)
    table[at + TOTAL.largest], table[at + TOTAL.smallest], table[at + TOTAL.sum] = largest, smallest, sum_
    table[at + TOTAL.square_high], table[at + TOTAL.square_low] = high, low
    table[at + TOTAL.flags], table[at + TOTAL.flagged_sum] = flags, flagged_sum


@inlined
def with_totals(totals: Any, table: Any, at: Any) -> Any:
    """Totals with those that stand in a table.

    Args:
        totals: Seven numbers, in the order of `TOTAL`.
        table: The chunks or the arena of events, flat.
        at: Number of the word at which the other totals begin.

    Returns:
        Seven numbers, in the same order.
    """
    largest, smallest, sum_, high, low, flags, flagged_sum = totals
    high, low = add_wide(high, low, table[at + TOTAL.square_high], table[at + TOTAL.square_low])
    return (
        max(largest, table[at + TOTAL.largest]), min(smallest, table[at + TOTAL.smallest]),
        sum_ + table[at + TOTAL.sum], high, low, flags + table[at + TOTAL.flags],
        flagged_sum + table[at + TOTAL.flagged_sum],
    )  # fmt: skip
