"""The compiled kernel: timelines of events and labels in flat arrays, and the features read off them.

All compiled functions stand in this one module, because Numba's cache notices changes of a function's own
file only. ``docs/features.md`` defines what they compute; `pipeline.features.kernel` is the way in.

A *timeline* holds one entity's events, ordered by event time (of the same instant, by log), in a block of a shared
arena. Every column that a window sums over is cumulative, so that any window is a difference of two entries, found by
two binary searches; an integer that wraps around on the way still gives the right difference.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

from pipeline.features.catalogue import (
    CARD_FEATURES,
    HORIZON_US,
    LONGEST_WINDOW_US,
    MERCHANT_FEATURES,
    OUTLIER_MINIMUM_EVENTS,
    OUTLIER_RATIO,
    RISK_PRIOR_RATE,
    RISK_PRIOR_STRENGTH,
    TRANSACTION_FEATURES,
    US_PER_DAY,
    US_PER_SECOND,
    USUAL_EVENTS,
    WINDOWS_US,
)

F = TypeVar("F", bound=Callable[..., Any])

BLOCK: Final = 16
"""Capacity of a new timeline, and the run of events over which extremes are kept ready."""
SIZE_CLASSES: Final = 48
NEVER: Final = np.iinfo(np.int64).max
_WINDOWS: Final = tuple(WINDOWS_US.values())
_N_WINDOWS: Final = len(_WINDOWS)
_N_STATISTICS: Final = 6
_CARD_TAIL: Final = len(TRANSACTION_FEATURES) + _N_WINDOWS * _N_STATISTICS
_MERCHANT_TAIL: Final = _N_WINDOWS * _N_STATISTICS
_N_CARD: Final = len(CARD_FEATURES)
_N_MERCHANT: Final = len(MERCHANT_FEATURES)
_TWO_64: Final = 18446744073709551616.0
_MASK_32: Final = np.uint64(0xFFFFFFFF)
_SHIFT_32: Final = np.uint64(32)
_MAD_TO_SIGMA: Final = 1.4826
_DEVIATION_FLOOR: Final = 0.1
_FORTNIGHT_US: Final = 14 * US_PER_DAY


def compiled(function: F) -> F:
    """Compile with Numba, without the interpreter lock, cached on disk."""
    return cast(F, numba.njit(cache=True, nogil=True, error_model="numpy")(function))


class Directory(NamedTuple):
    """Where each entity's block lies in the arena; one entry a slot, but for ``free`` and ``meta``."""

    start: NDArray[np.int64]
    length: NDArray[np.int64]
    capacity: NDArray[np.int64]
    free: NDArray[np.int64]
    """Head of the list of free blocks by size class (capacity = BLOCK << class); -1: none."""
    meta: NDArray[np.int64]
    """[0]: end of the used part of the arena."""


class Events(NamedTuple):
    """Arena of transactions. ``sum_``, ``square_*`` and ``flags`` are cumulative within a timeline."""

    time_us: NDArray[np.int64]
    amount: NDArray[np.int64]
    sum_: NDArray[np.int64]
    square_high: NDArray[np.uint64]
    square_low: NDArray[np.uint64]
    flags: NDArray[np.int32]
    other: NDArray[np.int32]
    """The entity on the other side (the merchant, in a card's timeline)."""
    block_max: NDArray[np.int64]
    block_min: NDArray[np.int64]


class EventBases(NamedTuple):
    """The cumulative columns just before each timeline's first entry."""

    sum_: NDArray[np.int64]
    square_high: NDArray[np.uint64]
    square_low: NDArray[np.uint64]
    flags: NDArray[np.int32]


class Labels(NamedTuple):
    """Arena of labelled transactions; ``known`` and ``frauds`` are cumulative within a timeline."""

    time_us: NDArray[np.int64]
    identity: NDArray[np.uint64]
    known_at_us: NDArray[np.int64]
    superseded_at_us: NDArray[np.int64]
    value: NDArray[np.int8]
    known: NDArray[np.int32]
    frauds: NDArray[np.int32]


class LabelBases(NamedTuple):
    """Per timeline: cumulative columns before its first entry, and what decides whether they may be used."""

    known: NDArray[np.int32]
    frauds: NDArray[np.int32]
    latest_known_at_us: NDArray[np.int64]
    corrected: NDArray[np.int32]


@compiled
def multiply(a: Any, b: Any) -> Any:
    """128-bit product (high, low) of two unsigned 64-bit integers, schoolbook on 32-bit halves."""
    a_low, a_high = a & _MASK_32, a >> _SHIFT_32
    b_low, b_high = b & _MASK_32, b >> _SHIFT_32
    low = a_low * b_low
    middle = a_high * b_low + (low >> _SHIFT_32)
    cross = a_low * b_high + (middle & _MASK_32)
    return a_high * b_high + (middle >> _SHIFT_32) + (cross >> _SHIFT_32), (cross << _SHIFT_32) | (low & _MASK_32)


@compiled
def _standard_deviation(count: int, total: int, high: Any, low: Any) -> float:
    """Population standard deviation from exact sums: sqrt(n * sum(a^2) - sum(a)^2) / n."""
    n = np.uint64(count)
    scaled_high, scaled_low = multiply(n, low)
    scaled_high = scaled_high + n * high
    square_high, square_low = multiply(np.uint64(total), np.uint64(total))
    borrow = np.uint64(1) if scaled_low < square_low else np.uint64(0)
    numerator = np.float64(scaled_high - square_high - borrow) * _TWO_64 + np.float64(scaled_low - square_low)
    return float(np.sqrt(numerator) / count)


@compiled
def _first_later(times: Any, start: int, length: int, time_us: Any) -> int:
    """Index (within the timeline) of the first entry later than ``time_us``."""
    low, high = 0, length
    while low < high:
        middle = (low + high) >> 1
        if times[start + middle] <= time_us:
            low = middle + 1
        else:
            high = middle
    return low


@compiled
def _first_reaching(column: Any, start: int, low: int, high: int, target: int) -> int:
    """First index in [low, high) at which the cumulative ``column`` has reached ``target``."""
    while low < high:
        middle = (low + high) >> 1
        if column[start + middle] < target:
            low = middle + 1
        else:
            high = middle
    return low


@compiled
def _size_class(capacity: int) -> int:
    size_class, size = 0, BLOCK
    while size < capacity:
        size <<= 1
        size_class += 1
    return size_class


@compiled
def _take_block(directory: Directory, links: Any, capacity: int) -> int:
    """Start of an unused block, or -1 where the arena must grow first. Freed blocks form lists through ``links``."""
    size_class = _size_class(capacity)
    head = directory.free[size_class]
    if head >= 0:
        directory.free[size_class] = links[head]
        return int(head)
    tail = directory.meta[0]
    if tail + capacity > links.shape[0]:
        return -1
    directory.meta[0] = tail + capacity
    return int(tail)


@compiled
def _free_block(directory: Directory, links: Any, start: int, capacity: int) -> None:
    size_class = _size_class(capacity)
    links[start] = directory.free[size_class]
    directory.free[size_class] = start


@compiled
def _room(directory: Directory, slot: int, times: Any, links: Any) -> Any:
    """Make room for one more entry of ``slot``.

    Returns (old start, entries to drop from the front, new start); the new start is -1 where the arena is full.
    """
    start, length, capacity = directory.start[slot], directory.length[slot], directory.capacity[slot]
    if length < capacity:
        return start, 0, start
    drop = 0
    if length > 0:
        drop = _first_later(times, start, length, times[start + length - 1] - HORIZON_US)
        if drop * 4 >= capacity:
            return start, drop, start
    wanted = BLOCK if capacity == 0 else capacity * 2
    new = _take_block(directory, links, wanted)
    if new >= 0:
        directory.start[slot] = new
        directory.capacity[slot] = wanted
    return start, drop, new


@compiled
def _refresh_blocks(events: Events, start: int, first: int, length: int) -> None:
    """Recompute the extremes of all blocks from the one that holds entry ``first`` on."""
    for block in range(first // BLOCK, (length + BLOCK - 1) // BLOCK):
        low = start + block * BLOCK
        high = min(start + length, low + BLOCK)
        largest, smallest = events.amount[low], events.amount[low]
        for i in range(low + 1, high):
            largest = max(largest, events.amount[i])
            smallest = min(smallest, events.amount[i])
        events.block_max[low // BLOCK] = largest
        events.block_min[low // BLOCK] = smallest


@compiled
def _event_room(directory: Directory, events: Events, bases: EventBases, slot: int) -> bool:
    """Make room for one more event; False where the arena is full and nothing was changed."""
    old_capacity, length = directory.capacity[slot], directory.length[slot]
    old, drop, new = _room(directory, slot, events.time_us, events.amount)
    if new < 0:
        return False
    if drop == 0 and new == old:
        return True
    if drop > 0:
        last = old + drop - 1
        bases.sum_[slot] = events.sum_[last]
        bases.square_high[slot] = events.square_high[last]
        bases.square_low[slot] = events.square_low[last]
        bases.flags[slot] = events.flags[last]
    for i in range(length - drop):
        source, target = old + drop + i, new + i
        events.time_us[target] = events.time_us[source]
        events.amount[target] = events.amount[source]
        events.sum_[target] = events.sum_[source]
        events.square_high[target] = events.square_high[source]
        events.square_low[target] = events.square_low[source]
        events.flags[target] = events.flags[source]
        events.other[target] = events.other[source]
    directory.length[slot] = length - drop
    _refresh_blocks(events, new, 0, length - drop)
    if new != old and old_capacity > 0:
        _free_block(directory, events.amount, old, old_capacity)
    return True


@compiled
def _insert_event(
    directory: Directory,
    events: Events,
    bases: EventBases,
    slot: int,
    position: int,
    time_us: int,
    amount: int,
    flag: int,
    other: int,
) -> None:
    """Put an event at ``position`` of its timeline (there must be room); later entries move up by one."""
    start, length = directory.start[slot], directory.length[slot]
    high, low = multiply(np.uint64(amount), np.uint64(amount))
    for i in range(start + length, start + position, -1):
        events.time_us[i] = events.time_us[i - 1]
        events.amount[i] = events.amount[i - 1]
        events.other[i] = events.other[i - 1]
        events.sum_[i] = events.sum_[i - 1] + amount
        events.flags[i] = events.flags[i - 1] + flag
        new_low = events.square_low[i - 1] + low
        events.square_high[i] = events.square_high[i - 1] + high + (np.uint64(1) if new_low < low else np.uint64(0))
        events.square_low[i] = new_low
    at = start + position
    if position == 0:
        sum_, flags = bases.sum_[slot], bases.flags[slot]
        square_high, square_low = bases.square_high[slot], bases.square_low[slot]
    else:
        sum_, flags = events.sum_[at - 1], events.flags[at - 1]
        square_high, square_low = events.square_high[at - 1], events.square_low[at - 1]
    new_low = square_low + low
    events.time_us[at] = time_us
    events.amount[at] = amount
    events.other[at] = other
    events.sum_[at] = sum_ + amount
    events.flags[at] = flags + flag
    events.square_high[at] = square_high + high + (np.uint64(1) if new_low < low else np.uint64(0))
    events.square_low[at] = new_low
    directory.length[slot] = length + 1
    if position == length and position % BLOCK != 0:
        block = at // BLOCK
        events.block_max[block] = max(events.block_max[block], amount)
        events.block_min[block] = min(events.block_min[block], amount)
    else:
        _refresh_blocks(events, start, position, length + 1)


@compiled
def _window_features(
    directory: Directory, events: Events, bases: EventBases, slot: int, time_us: int, row: Any, column: int
) -> Any:
    """Write count, sum, mean, std, max and min of every window to ``row`` from ``column`` on.

    Returns (first index of the history, index behind it).
    """
    start, length = directory.start[slot], directory.length[slot]
    end = length
    if length > 0 and events.time_us[start + length - 1] > time_us:
        end = _first_later(events.time_us, start, length, time_us)
    largest, smallest, known_from = np.int64(0), np.int64(0), end
    floor = events.time_us[start + length - 1] - HORIZON_US if length > 0 else np.int64(0)
    first = end
    for w in range(_N_WINDOWS):
        first = _first_later(events.time_us, start, end, max(time_us - _WINDOWS[w], floor)) if length > 0 else 0
        count = end - first
        at = column + w * _N_STATISTICS
        row[at] = count
        if count == 0:
            row[at + 1] = 0.0
            row[at + 2 : at + 6] = np.nan
            continue
        last = start + end - 1
        if first == 0:
            sum_, high, low = bases.sum_[slot], bases.square_high[slot], bases.square_low[slot]
        else:
            before = start + first - 1
            sum_, high, low = events.sum_[before], events.square_high[before], events.square_low[before]
        total = events.sum_[last] - sum_
        borrow = np.uint64(1) if events.square_low[last] < low else np.uint64(0)
        square_high = events.square_high[last] - high - borrow
        square_low = events.square_low[last] - low
        if known_from == end:
            largest = smallest = events.amount[start + end - 1]
        i = known_from - 1
        while i >= first:
            if (i + 1) % BLOCK == 0 and i - BLOCK + 1 >= first:
                block = (start + i) // BLOCK
                largest = max(largest, events.block_max[block])
                smallest = min(smallest, events.block_min[block])
                i -= BLOCK
            else:
                largest = max(largest, events.amount[start + i])
                smallest = min(smallest, events.amount[start + i])
                i -= 1
        known_from = first
        row[at + 1] = total / 100.0
        row[at + 2] = total / count / 100.0
        row[at + 3] = _standard_deviation(count, total, square_high, square_low) / 100.0
        row[at + 4] = largest / 100.0
        row[at + 5] = smallest / 100.0
    return first, end


@compiled
def _flagged(directory: Directory, events: Events, bases: EventBases, slot: int, first: int, end: int) -> int:
    start = directory.start[slot]
    if end <= first:
        return 0
    before = bases.flags[slot] if first == 0 else events.flags[start + first - 1]
    return int(events.flags[start + end - 1] - before)


@compiled
def _median_and_spread(ordered: Any, n: int) -> Any:
    """(2 x median, 4 x MAD) of ``ordered[:n]`` (ascending integers); MAD: median absolute deviation from the median."""
    median_2 = ordered[(n - 1) // 2] + ordered[n // 2]
    # The distances from the median fall and then rise along the sorted amounts, so that the
    # smallest ones are met by walking outwards from the middle.
    right = n // 2
    left = right - 1
    distance = previous = np.int64(0)
    for _ in range(n // 2 + 1):
        previous = distance
        take_left = right >= n or (left >= 0 and median_2 - 2 * ordered[left] <= 2 * ordered[right] - median_2)
        if take_left:
            distance = median_2 - 2 * ordered[left]
            left -= 1
        else:
            distance = 2 * ordered[right] - median_2
            right += 1
    return median_2, (2 * distance if n % 2 == 1 else previous + distance)


@compiled
def profile_cards(
    directory: Directory,
    events: Events,
    bases: EventBases,
    first_row: int,
    slots: Any,
    merchants: Any,
    times: Any,
    amounts: Any,
    counts: Any,
    hours: Any,
    weekdays: Any,
    out: Any,
) -> int:
    """Fill ``out`` (rows x CARD_FEATURES) from ``first_row`` on; returns the first row not done (the arena is full)."""
    ordered = np.empty(USUAL_EVENTS, np.int64)
    for i in range(first_row, slots.shape[0]):
        slot, time_us, amount = slots[i], times[i], amounts[i]
        if counts[i] and not _event_room(directory, events, bases, slot):
            return i
        row = out[i]
        row[0] = amount / 100.0
        row[1] = hours[i]
        row[2] = weekdays[i]
        first, end = _window_features(directory, events, bases, slot, time_us, row, len(TRANSACTION_FEATURES))
        start, length = directory.start[slot], directory.length[slot]
        tail = _CARD_TAIL
        row[tail] = (time_us - events.time_us[start + end - 1]) / US_PER_SECOND if end > first else np.nan
        n = min(end - first, USUAL_EVENTS)
        row[tail + 1 : tail + 4] = np.nan
        flag, seen = 0, 0
        if n > 0:
            for j in range(n):
                at = start + end - n + j
                value = events.amount[at]
                if events.other[at] == merchants[i]:
                    seen += 1
                k = j
                while k > 0 and ordered[k - 1] > value:
                    ordered[k] = ordered[k - 1]
                    k -= 1
                ordered[k] = value
            median_2, spread_4 = _median_and_spread(ordered, n)
            row[tail + 1] = median_2 / 200.0
            if median_2 > 0:
                row[tail + 2] = amount / (median_2 / 2.0)
            scale = max(_MAD_TO_SIGMA * spread_4 / 4.0, _DEVIATION_FLOOR * median_2 / 2.0)
            if scale > 0:
                row[tail + 3] = (amount - median_2 / 2.0) / scale
            if n >= OUTLIER_MINIMUM_EVENTS and 2 * amount > OUTLIER_RATIO * median_2:
                flag = 1
        for w in range(1, _N_WINDOWS):
            # The count of the window, written above, says where it starts.
            count = np.int64(row[len(TRANSACTION_FEATURES) + w * _N_STATISTICS])
            row[tail + 3 + w] = _flagged(directory, events, bases, slot, end - count, end)
        row[tail + 7] = seen
        if counts[i] and (length == 0 or time_us > events.time_us[start + length - 1] - HORIZON_US):
            _insert_event(directory, events, bases, slot, end, time_us, amount, flag, merchants[i])
    return int(slots.shape[0])


@compiled
def _label_room(directory: Directory, labels: Labels, bases: LabelBases, slot: int) -> bool:
    """Make room for one more label; False where the arena is full and nothing was changed."""
    old_capacity, length = directory.capacity[slot], directory.length[slot]
    old, drop, new = _room(directory, slot, labels.time_us, labels.known_at_us)
    if new < 0:
        return False
    if drop == 0 and new == old:
        return True
    if drop > 0:
        bases.known[slot] = labels.known[old + drop - 1]
        bases.frauds[slot] = labels.frauds[old + drop - 1]
    latest, corrected = np.int64(0), 0
    for i in range(length - drop):
        source, target = old + drop + i, new + i
        labels.time_us[target] = labels.time_us[source]
        labels.identity[target] = labels.identity[source]
        labels.known_at_us[target] = labels.known_at_us[source]
        labels.superseded_at_us[target] = labels.superseded_at_us[source]
        labels.value[target] = labels.value[source]
        labels.known[target] = labels.known[source]
        labels.frauds[target] = labels.frauds[source]
        latest = max(latest, labels.known_at_us[target])
        corrected += 1 if labels.superseded_at_us[target] != NEVER else 0
    bases.latest_known_at_us[slot] = latest
    bases.corrected[slot] = corrected
    directory.length[slot] = length - drop
    if new != old and old_capacity > 0:
        _free_block(directory, labels.known_at_us, old, old_capacity)
    return True


@compiled
def _insert_label(
    directory: Directory,
    labels: Labels,
    bases: LabelBases,
    slot: int,
    time_us: int,
    identity: Any,
    value: int,
    known_at_us: int,
) -> None:
    """Add what a label makes known (there must be room); an earlier label of the same transaction is superseded."""
    start, length = directory.start[slot], directory.length[slot]
    if length > 0 and time_us <= labels.time_us[start + length - 1] - HORIZON_US:
        return
    position = _first_later(labels.time_us, start, length, time_us)
    i = position - 1
    while i >= 0 and labels.time_us[start + i] == time_us:
        if labels.identity[start + i] == identity and labels.superseded_at_us[start + i] == NEVER:
            known_at_us = max(known_at_us, labels.known_at_us[start + i])
            labels.superseded_at_us[start + i] = known_at_us
            bases.corrected[slot] += 1
            # Directly behind what it replaces, so that of two transactions of the same
            # instant the one first labelled later stays the later one.
            position = i + 1
            break
        i -= 1
    known = 1 if value in (0, 1) else 0
    fraud = 1 if value == 1 else 0
    for j in range(start + length, start + position, -1):
        labels.time_us[j] = labels.time_us[j - 1]
        labels.identity[j] = labels.identity[j - 1]
        labels.known_at_us[j] = labels.known_at_us[j - 1]
        labels.superseded_at_us[j] = labels.superseded_at_us[j - 1]
        labels.value[j] = labels.value[j - 1]
        labels.known[j] = labels.known[j - 1] + known
        labels.frauds[j] = labels.frauds[j - 1] + fraud
    at = start + position
    labels.time_us[at] = time_us
    labels.identity[at] = identity
    labels.known_at_us[at] = known_at_us
    labels.superseded_at_us[at] = NEVER
    labels.value[at] = value
    labels.known[at] = (bases.known[slot] if position == 0 else labels.known[at - 1]) + known
    labels.frauds[at] = (bases.frauds[slot] if position == 0 else labels.frauds[at - 1]) + fraud
    bases.latest_known_at_us[slot] = max(bases.latest_known_at_us[slot], known_at_us)
    directory.length[slot] = length + 1


@compiled
def _known_cumulative(labels: Labels, bases: LabelBases, slot: int, start: int, first: int, end: int) -> Any:
    """(known, frauds, newest known, newest fraud, newest legitimate) of entries [first, end), by cumulative columns.

    The last three are indices, -1 for none.
    """
    if end <= first:
        return 0, 0, -1, -1, -1
    known_before = bases.known[slot] if first == 0 else labels.known[start + first - 1]
    frauds_before = bases.frauds[slot] if first == 0 else labels.frauds[start + first - 1]
    known_end, frauds_end = labels.known[start + end - 1], labels.frauds[start + end - 1]
    known, frauds = known_end - known_before, frauds_end - frauds_before
    newest = _first_reaching(labels.known, start, first, end, known_end) if known > 0 else -1
    fraud = _first_reaching(labels.frauds, start, first, end, frauds_end) if frauds > 0 else -1
    legitimate = -1
    if known > frauds:
        low, high, target = first, end, known_end - frauds_end
        while low < high:
            middle = (low + high) >> 1
            if labels.known[start + middle] - labels.frauds[start + middle] < target:
                low = middle + 1
            else:
                high = middle
        legitimate = low
    return known, frauds, newest, fraud, legitimate


@compiled
def _known_scanned(labels: Labels, start: int, first: int, end: int, time_us: int) -> Any:
    """The same, entry by entry, by what was known at ``time_us``."""
    known, frauds, newest, fraud, legitimate = 0, 0, -1, -1, -1
    for i in range(end - 1, first - 1, -1):
        at = start + i
        value = labels.value[at]
        if value == 2 or labels.known_at_us[at] > time_us or labels.superseded_at_us[at] <= time_us:
            continue
        known += 1
        if newest < 0:
            newest = i
        if value == 1:
            frauds += 1
            if fraud < 0:
                fraud = i
        elif legitimate < 0:
            legitimate = i
    return known, frauds, newest, fraud, legitimate


@compiled
def _label_features(
    directory: Directory, labels: Labels, bases: LabelBases, slot: int, time_us: int, row: Any, column: int
) -> None:
    start, length = directory.start[slot], directory.length[slot]
    month, fortnight = (0, 0, -1, -1, -1), (0, 0, -1, -1, -1)
    if length > 0:
        floor = labels.time_us[start + length - 1] - HORIZON_US
        end = _first_later(labels.time_us, start, length, time_us)
        first = _first_later(labels.time_us, start, end, max(time_us - LONGEST_WINDOW_US, floor))
        middle = _first_later(labels.time_us, start, end, max(time_us - _FORTNIGHT_US, floor))
        if bases.corrected[slot] == 0 and bases.latest_known_at_us[slot] <= time_us:
            month = _known_cumulative(labels, bases, slot, start, first, end)
            fortnight = _known_cumulative(labels, bases, slot, start, middle, end)
        else:
            month = _known_scanned(labels, start, first, end, time_us)
            fortnight = _known_scanned(labels, start, middle, end, time_us)
    row[column] = fortnight[0]
    row[column + 1] = fortnight[1]
    row[column + 2] = month[0]
    row[column + 3] = month[1]
    row[column + 4] = (month[1] + RISK_PRIOR_RATE * RISK_PRIOR_STRENGTH) / (month[0] + RISK_PRIOR_STRENGTH)
    newest, fraud, legitimate = month[2], month[3], month[4]
    row[column + 5] = np.nan if newest < 0 else (1.0 if newest == fraud else 0.0)
    row[column + 6] = np.nan if fraud < 0 else (time_us - labels.time_us[start + fraud]) / US_PER_SECOND
    row[column + 7] = np.nan if legitimate < 0 else (time_us - labels.time_us[start + legitimate]) / US_PER_SECOND


@compiled
def profile_merchants(
    directory: Directory,
    events: Events,
    bases: EventBases,
    label_directory: Directory,
    labels: Labels,
    label_bases: LabelBases,
    first_row: int,
    kinds: Any,
    slots: Any,
    identities: Any,
    times: Any,
    amounts: Any,
    counts: Any,
    known: Any,
    known_at: Any,
    out: Any,
) -> int:
    """Fill ``out`` (rows x MERCHANT_FEATURES) from ``first_row`` on; returns the first row not done (an arena is full).

    A row of kind 1 is a label: it changes what is known, and its output row is NaN.
    """
    for i in range(first_row, slots.shape[0]):
        slot, time_us, amount = slots[i], times[i], amounts[i]
        row = out[i]
        if kinds[i] == 1:
            if not _label_room(label_directory, labels, label_bases, slot):
                return i
            row[:] = np.nan
            _insert_label(label_directory, labels, label_bases, slot, time_us, identities[i], known[i], known_at[i])
            continue
        if counts[i] and not _event_room(directory, events, bases, slot):
            return i
        first, end = _window_features(directory, events, bases, slot, time_us, row, 0)
        start, length = directory.start[slot], directory.length[slot]
        tail = _MERCHANT_TAIL
        row[tail] = (time_us - events.time_us[start + end - 1]) / US_PER_SECOND if end > first else np.nan
        mean = row[(_N_WINDOWS - 1) * _N_STATISTICS + 2]
        row[tail + 1] = amount / 100.0 / mean if mean > 0 else np.nan
        month = row[(_N_WINDOWS - 1) * _N_STATISTICS]
        row[tail + 2] = row[_N_STATISTICS] / (month / 30.0) if month > 0 else np.nan
        _label_features(label_directory, labels, label_bases, slot, time_us, row, tail + 3)
        if counts[i] and (length == 0 or time_us > events.time_us[start + length - 1] - HORIZON_US):
            _insert_event(directory, events, bases, slot, end, time_us, amount, 0, 0)
    return int(slots.shape[0])
