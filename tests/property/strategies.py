"""Logs of transactions and labels that go where windows break: their edges, late events, ties, corrections."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from hypothesis import strategies as st

SECOND = 1_000_000
HOUR = 3_600 * SECOND
DAY = 24 * HOUR
START_US = 1_709_251_200 * SECOND

EDGES = (0, 1, SECOND, HOUR, DAY, 7 * DAY, 14 * DAY, 30 * DAY, 37 * DAY, 44 * DAY)
"""Distances at which an event enters or leaves something; one microsecond around each matters."""

IDENTITIES = (0, 1, 2**63, 2**64 - 1)
"""Hashes that an implementation might use as a mark of its own."""

distances_us = st.one_of(
    st.tuples(st.sampled_from(EDGES), st.sampled_from((-1, 0, 1))).map(sum),
    st.integers(0, 2 * HOUR),
    st.integers(0, 45 * DAY),
)
lattice_us = st.tuples(st.sampled_from((0, 7, 14, 30, 37, 44)).map(lambda days: days * DAY), st.integers(-1, 1)).map(
    sum
)
"""Few enough instants that two of them often lie exactly one limit apart."""

amounts_minor = st.one_of(st.sampled_from((0, 1, 2, 3, 100, 10**13)), st.integers(1, 500), st.integers(0, 10**13))


@st.composite
def times_us(draw: st.DrawFn, size: int, *, ordered: bool) -> list[int]:
    """Event times at telling distances: of a few days' lattice, or each from an earlier one."""
    if draw(st.booleans()):
        instants = draw(st.lists(lattice_us, min_size=2, max_size=5, unique=True))
        on_lattice = [START_US + draw(st.sampled_from(instants)) for _ in range(size)]
        return sorted(on_lattice) if ordered else on_lattice
    times: list[int] = []
    for _ in range(size):
        anchor = START_US if not times else (times[-1] if ordered else draw(st.sampled_from(times)))
        sign = 1 if ordered else draw(st.sampled_from((1, 1, -1)))
        times.append(anchor + sign * abs(draw(distances_us)))
    return times


@st.composite
def card_logs(draw: st.DrawFn) -> pd.DataFrame:
    """Transactions of a few cards, as `tests.reference.features.card_features` reads them."""
    size = draw(st.integers(1, 45))
    times = draw(times_us(size, ordered=draw(st.booleans())))
    return pd.DataFrame(
        [
            {
                "card_id": draw(st.sampled_from(("a", "a", "b"))),
                "merchant_id": draw(st.sampled_from("mno")),
                "event_time_us": time,
                "amount_minor": draw(amounts_minor),
                "counts": draw(st.sampled_from((True, True, True, False))),
                "hour": time / HOUR % 24,
                "weekday": float(time // DAY % 7),
            }
            for time in times
        ]
    )


@st.composite
def merchant_logs(draw: st.DrawFn) -> pd.DataFrame:
    """Transactions and labels of a few merchants, as `tests.reference.features.merchant_features` reads them."""
    size = draw(st.integers(1, 45))
    times = draw(times_us(size, ordered=draw(st.booleans())))
    rows: list[dict[str, object]] = []
    transactions: list[dict[str, object]] = []
    for number, time in enumerate(times):
        if transactions and draw(st.booleans()):
            known_at_us = draw(st.sampled_from((START_US - DAY, *times)))
            rows.append(_label(draw(st.sampled_from(transactions)), known_at_us, draw))
            continue
        row = {
            "kind": "transaction",
            "merchant_id": draw(st.sampled_from(("m", "m", "n"))),
            "transaction": IDENTITIES[number] if number < len(IDENTITIES) else 1_000 + number,
            "event_time_us": time,
            "amount_minor": draw(amounts_minor),
            "counts": draw(st.sampled_from((True, True, True, False))),
            "outlier": draw(st.sampled_from((False, False, True))),
            "known": "none",
            "known_at_us": 0,
        }
        rows.append(row)
        transactions.append(row)
    return _with_identities(rows)


def _label(row: dict[str, object], anchor_us: int, draw: st.DrawFn) -> dict[str, object]:
    return {
        **row,
        "kind": "label",
        "amount_minor": 0,
        "counts": False,
        "known": draw(st.sampled_from(("fraud", "fraud", "legitimate", "none"))),
        "known_at_us": anchor_us + draw(st.sampled_from((1, -1))) * draw(st.sampled_from((0, 1, HOUR, DAY, 10 * DAY))),
    }


def _with_identities(rows: list[dict[str, object]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows)
    return frame.assign(transaction=frame["transaction"].astype("uint64"))


def busy_card_log(seed: int, size: int) -> pd.DataFrame:
    """Hundreds of events of one card within its windows, some late, some of the same instant."""
    generator = np.random.default_rng(seed)
    times = _busy_times(generator, size)
    return _card_log(generator, times, np.where(generator.random(size) < 0.95, "hot", "other"))


def _card_log(generator: np.random.Generator, times: np.ndarray, cards: Sequence[str] | np.ndarray) -> pd.DataFrame:
    size = len(times)
    return pd.DataFrame(
        {
            "card_id": cards,
            "merchant_id": generator.choice(["m", "n", "o"], size),
            "event_time_us": times,
            "amount_minor": generator.integers(1, 20_000, size),
            "counts": generator.random(size) < 0.9,
            "hour": times / HOUR % 24,
            "weekday": (times // DAY % 7).astype(float),
        }
    )


def busy_merchant_log(seed: int, size: int) -> pd.DataFrame:
    """Hundreds of transactions and labels, with corrections, of one merchant."""
    generator = np.random.default_rng(seed)
    times = _busy_times(generator, size)
    return _merchant_log(generator, times, np.where(generator.random(size) < 0.95, "hot", "other").tolist(), recent=60)


def _merchant_log(
    generator: np.random.Generator, times: np.ndarray, merchants: list[str], *, recent: int
) -> pd.DataFrame:
    """Transactions, and labels of one of the ``recent`` before them."""
    rows: list[dict[str, object]] = []
    transactions: list[dict[str, object]] = []
    for number, (time, merchant) in enumerate(zip(times.tolist(), merchants, strict=True)):
        if transactions and generator.random() < 0.4:
            labelled = transactions[int(generator.integers(max(0, len(transactions) - recent), len(transactions)))]
            known = str(generator.choice(["fraud", "legitimate", "none"], p=[0.4, 0.4, 0.2]))
            known_at_us = time + int(generator.integers(-5 * DAY, 5 * DAY))
            rows.append({**labelled, "kind": "label", "known": known, "known_at_us": known_at_us})
            continue
        row: dict[str, object] = {
            "kind": "transaction",
            "merchant_id": merchant,
            "transaction": int(generator.integers(2**63)) + number,
            "event_time_us": time,
            "amount_minor": int(generator.integers(1, 20_000)),
            "counts": bool(generator.random() < 0.9),
            "outlier": bool(generator.random() < 0.1),
            "known": "none",
            "known_at_us": 0,
        }
        rows.append(row)
        transactions.append(row)
    return _with_identities(rows)


def _busy_times(generator: np.random.Generator, size: int) -> np.ndarray:
    gaps = generator.choice([0, SECOND, HOUR // 4, HOUR, 6 * HOUR], size, p=[0.1, 0.3, 0.3, 0.2, 0.1])
    times = START_US + np.cumsum(gaps.astype(np.int64))
    late = generator.random(size) < 0.1
    return times - np.where(late, generator.integers(0, 12 * DAY, size), 0)


def steady_cards_log(seed: int, size: int) -> pd.DataFrame:
    """Cards that pay every few hours, days or weeks for months, so that each holds about as much all the time.

    From 6 to 90 transactions within the horizon; the busiest card becomes quiet half-way. Some events are late.
    """
    generator = np.random.default_rng(seed)
    gap_us = {"often": DAY * 2 // 5, "daily": DAY, "alternate": 2 * DAY, "weekly": 6 * DAY}
    parts = []
    for number, (card, gap) in enumerate(gap_us.items()):
        times = START_US + np.arange(1, size + 1) * gap + number
        if card == "often":
            times[size // 2 :] += np.arange(size - size // 2) * 10 * DAY
        late = generator.random(size) < 0.1
        arrived = times + np.where(late, generator.integers(0, 10 * DAY, size), 0)
        parts.append(pd.DataFrame({"card_id": card, "event_time_us": times, "arrived_us": arrived}))
    log = pd.concat(parts).sort_values("arrived_us", kind="stable").head(size).reset_index(drop=True)
    return log.drop(columns="arrived_us").assign(
        merchant_id=generator.choice(["m", "n", "o"], size),
        amount_minor=generator.integers(1, 20_000, size),
        counts=True,
        hour=log["event_time_us"] / HOUR % 24,
        weekday=(log["event_time_us"] // DAY % 7).astype(float),
    )


def passing_cards_log(seed: int, size: int) -> pd.DataFrame:
    """Cards that come and go over hundreds of days, some to return long after; a tenth of the events is late."""
    generator = np.random.default_rng(seed)
    times = _passing_times(generator, size)
    return _card_log(generator, times, _passing_entities(generator, size))


def passing_merchants_log(seed: int, size: int) -> pd.DataFrame:
    """Merchants that come and go over hundreds of days, with labels and corrections."""
    generator = np.random.default_rng(seed)
    times, entities = _passing_times(generator, size), _passing_entities(generator, size)
    return _merchant_log(generator, times, entities, recent=40)


def _passing_times(generator: np.random.Generator, size: int) -> np.ndarray:
    gaps = generator.choice([0, SECOND, HOUR, 12 * HOUR, 2 * DAY], size, p=[0.1, 0.3, 0.3, 0.2, 0.1])
    late = generator.random(size) < 0.1
    return START_US + np.cumsum(gaps.astype(np.int64)) - np.where(late, generator.integers(0, 50 * DAY, size), 0)


def _passing_entities(generator: np.random.Generator, size: int) -> list[str]:
    drawn = np.arange(size) // 20 + generator.integers(0, 6, size)
    return [f"e{number if generator.random() < 0.95 else number % 3}" for number in drawn.tolist()]
