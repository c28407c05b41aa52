"""Every feature, computed the slow and obvious way: each row looks at all earlier rows again.

Written from ``docs/features.md`` alone, and sharing nothing with the kernel: no code, no constants, no state that
is carried from one row to the next. Money is Python integers and fractions until the last division.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import pandas as pd

SECOND = 1_000_000
DAY = 24 * 60 * 60 * SECOND
WINDOWS = {"1h": DAY // 24, "1d": DAY, "7d": 7 * DAY, "30d": 30 * DAY}
HORIZON = 37 * DAY
NAN = math.nan


DIVIDED = ("mean", "std", "amount_to", "deviation", "surge", "risk")
"""Features whose last bits depend on the order of divisions and roots; all others must be equal to the last bit."""
RELATIVE_TOLERANCE = 1e-12


class Event(NamedTuple):
    """A transaction of one card or merchant, at its position in the log."""

    position: int
    time: int
    amount: int
    counts: bool
    merchant: Any
    outlier: bool = False


class LabelEvent(NamedTuple):
    """A label at its place in a merchant's log."""

    position: int
    transaction: Any
    time: int
    known: str
    known_at: int


def tolerance(name: str) -> float:
    """Largest distance of the feature from its reference, as a share of it."""
    return RELATIVE_TOLERANCE if any(part in name for part in DIVIDED) else 0.0


def card_features(frame: pd.DataFrame) -> pd.DataFrame:
    """The features of the transaction and of its card, one row for each row of ``frame``.

    ``frame`` is in log order, with columns ``card_id``, ``merchant_id``, ``event_time_us``, ``amount_minor``,
    ``counts``, ``hour`` and ``weekday``. Where it is not the whole log of its partition, the column
    ``partition_newest_us`` tells the newest event time before each row (see `with_partition_newest`).
    """
    logs: dict[Any, list[Event]] = {}
    rows = []
    for position, row in enumerate(with_partition_newest(frame).to_dict("records")):
        earlier = logs.setdefault(row["card_id"], [])
        event = Event(
            position, int(row["event_time_us"]), int(row["amount_minor"]), bool(row["counts"]), row["merchant_id"]
        )
        values = {"amount": event.amount / 100, "hour": row["hour"], "weekday": row["weekday"]}
        past = history(earlier, event.time, int(row["partition_newest_us"]))
        values |= window_features("card", past, event.time)
        usual = past[-32:]
        values |= usual_features(usual, event)
        for name in ("1d", "7d", "30d"):
            values[f"card_outlier_count_{name}"] = sum(e.outlier for e in past if e.time > event.time - WINDOWS[name])
        values |= regular_features(past, event)
        rows.append(values)
        outlier = len(usual) >= 5 and event.amount > 3 * median([e.amount for e in usual])
        earlier.append(event._replace(outlier=outlier))
    return pd.DataFrame(rows, index=frame.index)


def card_outliers(frame: pd.DataFrame) -> list[bool]:
    """Return True for each row whose amount is an outlier for its card; ``frame`` as `card_features` reads it."""
    features = card_features(frame)
    return ((features["card_amount_to_usual"] > 3) & (features["card_count_30d"] >= 5)).tolist()


def card_cases(frame: pd.DataFrame) -> pd.DataFrame:
    """``case_start_us`` and ``case_sequence`` of each row of a frame as `card_features` reads it."""
    cases: dict[Any, list[int]] = {}
    rows = []
    for row in with_partition_newest(frame).to_dict("records"):
        time = int(row["event_time_us"])
        case = cases.setdefault(row["card_id"], [])
        if case and (case[0] <= int(row["partition_newest_us"]) - HORIZON or time >= case[0] + DAY):
            case.clear()
        case.append(time)
        rows.append({"case_start_us": case[0], "case_sequence": len(case)})
    return pd.DataFrame(rows, index=frame.index)


def merchant_features(frame: pd.DataFrame) -> pd.DataFrame:
    """The features of the merchant, one row for each row of ``frame``; all NaN for a label.

    ``frame`` is the merchants' log, with columns ``kind`` (``transaction`` or ``label``), ``merchant_id``,
    ``transaction`` (what identifies a labelled transaction), ``event_time_us`` (of a label: that of its
    transaction), ``amount_minor``, ``counts``, ``outlier`` (for its card), ``known`` (``fraud``, ``legitimate`` or
    ``none``) and ``known_at_us``; and ``partition_newest_us``, as for cards.
    """
    logs: dict[Any, tuple[list[Event], list[LabelEvent]]] = {}
    rows: list[dict[str, float]] = []
    for position, row in enumerate(with_partition_newest(frame).to_dict("records")):
        earlier, labels = logs.setdefault(row["merchant_id"], ([], []))
        time = int(row["event_time_us"])
        if row["kind"] == "label":
            labels.append(LabelEvent(position, row["transaction"], time, row["known"], int(row["known_at_us"])))
            rows.append({})
            continue
        event = Event(position, time, int(row["amount_minor"]), bool(row["counts"]), row["merchant_id"])
        newest = int(row["partition_newest_us"])
        past = history(earlier, time, newest)
        values = window_features("merchant", past, time)
        mean, count = values["merchant_mean_30d"], values["merchant_count_30d"]
        values["merchant_amount_to_mean"] = event.amount / 100 / mean if mean > 0 else NAN
        values["merchant_surge"] = values["merchant_count_1d"] / (count / 30) if count > 0 else NAN
        values |= label_features(labels, time, newest)
        values["merchant_seconds_since_first"] = (time - past[0].time) / SECOND if past else NAN
        values |= run_features(labels, earlier, past, time, newest)
        rows.append(values)
        explained = bool(row["outlier"]) or (
            len(past) >= 10 and event.amount * len(past) > 4 * sum(e.amount for e in past)
        )
        earlier.append(event._replace(outlier=explained))
    return pd.DataFrame(rows, index=frame.index)


def with_partition_newest(frame: pd.DataFrame) -> pd.DataFrame:
    """``frame`` with ``partition_newest_us``: the largest event time of the transactions before each row.

    Taken from the frame itself, unless the column is there; long ago before the first.
    """
    if "partition_newest_us" in frame:
        return frame
    newest, before = -(2**62), []
    labels = frame["kind"] == "label" if "kind" in frame else [False] * len(frame)
    for time, is_label in zip(frame["event_time_us"], labels, strict=True):
        before.append(newest)
        if not is_label:
            newest = max(newest, int(time))
    return frame.assign(partition_newest_us=before)


def history(earlier: Sequence[Event], time: int, newest: int) -> list[Event]:
    """The counted events that a transaction at ``time`` looks back on, by event time and then by log."""
    seen = [e for e in earlier if e.counts and time - 30 * DAY < e.time <= time and e.time > newest - HORIZON]
    return sorted(seen, key=lambda e: (e.time, e.position))


def window_features(entity: str, past: Sequence[Event], time: int) -> dict[str, float]:
    """Count, sum, mean, standard deviation and extremes of each window, and the time since the last event."""
    values: dict[str, float] = {}
    for name, length in WINDOWS.items():
        amounts = [event.amount for event in past if event.time > time - length]
        count, total = len(amounts), sum(amounts)
        values[f"{entity}_count_{name}"] = count
        values[f"{entity}_sum_{name}"] = total / 100
        values[f"{entity}_mean_{name}"] = total / (100 * count) if count else NAN
        values[f"{entity}_std_{name}"] = deviation(amounts) / 100 if count else NAN
        values[f"{entity}_max_{name}"] = max(amounts) / 100 if count else NAN
        values[f"{entity}_min_{name}"] = min(amounts) / 100 if count else NAN
    values[f"{entity}_seconds_since_last"] = (time - past[-1].time) / SECOND if past else NAN
    return values


def usual_features(usual: Sequence[Event], event: Event) -> dict[str, float]:
    """How the amount and the merchant compare with the card's latest transactions."""
    values = {
        "card_usual_amount": NAN,
        "card_amount_to_usual": NAN,
        "card_amount_deviation": NAN,
        "card_merchant_count": float(sum(e.merchant == event.merchant for e in usual)),
    }
    if usual:
        middle = median([e.amount for e in usual])
        mad = median([abs(e.amount - middle) for e in usual])
        values["card_usual_amount"] = float(middle / 100)
        if middle != 0:
            values["card_amount_to_usual"] = float(event.amount / middle)
        divisor = max(Fraction(14826, 10000) * mad, middle / 10)
        if divisor != 0:
            values["card_amount_deviation"] = float((event.amount - middle) / divisor)
    return values


def regular_features(past: Sequence[Event], event: Event) -> dict[str, float]:
    """Compare the amount with the card's transactions that were no outliers; find the last outlier."""
    values = {"card_regular_mean_30d": NAN, "card_amount_to_regular": NAN, "card_seconds_since_outlier": NAN}
    regular = [e.amount for e in past if not e.outlier]
    outliers = [e.time for e in past if e.outlier]
    if regular:
        mean = Fraction(sum(regular), len(regular))
        values["card_regular_mean_30d"] = float(mean / 100)
        if mean > 0:
            values["card_amount_to_regular"] = float(event.amount / mean)
    if outliers:
        values["card_seconds_since_outlier"] = (event.time - max(outliers)) / SECOND
    return values


def run_features(
    labels: Sequence[LabelEvent], earlier: Sequence[Event], past: Sequence[Event], time: int, newest: int
) -> dict[str, float]:
    """The known unexplained frauds of 30 days, what came after the newest one, and since when they have gone on."""
    explained = {
        label.position: any(
            e.counts and e.outlier and e.time == label.time and e.position < label.position for e in earlier
        )
        for label in labels
    }
    by_transaction: dict[Any, list[LabelEvent]] = {}
    for label in labels:
        by_transaction.setdefault(label.transaction, []).append(label)
    times = []
    for of_one in by_transaction.values():
        holding, at = held(of_one, time), of_one[0].time
        if holding is None or holding.known != "fraud" or explained[holding.position]:
            continue
        if time - 30 * DAY < at <= time and at > newest - HORIZON:
            times.append(at)
    times.sort(reverse=True)
    values = {"merchant_unexplained_fraud_30d": float(len(times))}
    for suffix, age in (("_2d", 2 * DAY), ("", 7 * DAY), ("_14d", 14 * DAY)):
        mature = [e.time for e in past if e.time <= time - age]
        silent, run = f"merchant_unreported_since_fraud{suffix}", f"merchant_fraud_run_seconds{suffix}"
        values[silent] = float(sum(at > times[0] for at in mature)) if times else NAN
        first = times[0] if times else 0
        for before in times[1:65]:
            if sum(before < at < first for at in mature) > 1:
                break
            first = before
        values[run] = (time - first) / SECOND if times else NAN
    return values


def label_features(labels: Sequence[LabelEvent], time: int, newest: int) -> dict[str, float]:
    """What is known at ``time`` of the merchant's labelled transactions."""
    by_transaction: dict[Any, list[LabelEvent]] = {}
    for label in labels:
        by_transaction.setdefault(label.transaction, []).append(label)
    known = []
    for of_one in by_transaction.values():
        holds = knowledge(of_one, time)
        first = of_one[0]
        if holds in ("fraud", "legitimate") and first.time <= time and first.time > newest - HORIZON:
            known.append((first.time, first.position, holds))
    known.sort()
    values: dict[str, float] = {}
    for days in (14, 30):
        within = [holds for at, _, holds in known if at > time - days * DAY]
        values[f"merchant_known_count_{days}d"] = len(within)
        values[f"merchant_known_fraud_{days}d"] = within.count("fraud")
    within_30d = [item for item in known if item[0] > time - 30 * DAY]
    values["merchant_fraud_risk_30d"] = (values["merchant_known_fraud_30d"] + 5 * 0.01) / (
        values["merchant_known_count_30d"] + 5
    )
    values["merchant_newest_label"] = float(within_30d[-1][2] == "fraud") if within_30d else NAN
    for what in ("fraud", "legitimate"):
        times = [at for at, _, holds in within_30d if holds == what]
        values[f"merchant_seconds_since_{what}"] = (time - max(times)) / SECOND if times else NAN
    return values


def knowledge(labels: Sequence[LabelEvent], time: int) -> str:
    """What holds at ``time`` of one transaction, given its labels so far in log order."""
    holding = held(labels, time)
    return "none" if holding is None else holding.known


def held(labels: Sequence[LabelEvent], time: int) -> LabelEvent | None:
    """The label of one transaction that holds at ``time``."""
    holding, since = None, None
    for label in labels:
        since = label.known_at if since is None else max(since, label.known_at)
        if since <= time:
            holding = label
    return holding


def median(values: Sequence[int | Fraction]) -> Fraction:
    """The middle value, or the mean of the middle two."""
    ordered = sorted(Fraction(value) for value in values)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) / 2


def deviation(values: Sequence[int]) -> float:
    """Population standard deviation; the variance is exact until its root."""
    mean = Fraction(sum(values), len(values))
    variance = sum((value - mean) ** 2 for value in values) / len(values)
    return math.sqrt(variance)
