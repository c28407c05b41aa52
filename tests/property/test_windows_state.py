"""The windows' state is bounded, can be taken back, saved and loaded, and none of it shows in a feature."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.features.catalogue import CARD_FEATURES, HORIZON_US, MERCHANT_FEATURES
from pipeline.features.kernel import CardProfile, CardWindows, MerchantWindows
from pipeline.features.state_columns import Storage
from pipeline.features.timelines.layout import (
    CHUNK,
    CHUNK_WORDS,
    LARGEST_BLOCK,
    LEAST_WITH_TOTALS,
    META,
    SLOT,
    SLOT_WORDS,
)
from pipeline.state.mapped import MappedStorage
from tests.helpers.keys import keys
from tests.helpers.timelines import Saved, Windows, contents
from tests.property.strategies import (
    DAY,
    START_US,
    busy_card_log,
    busy_merchant_log,
    card_logs,
    merchant_logs,
    passing_cards_log,
    passing_merchants_log,
    steady_cards_log,
)
from tests.property.test_features import assert_agrees, profile_cards, profile_merchants
from tests.reference.features import card_cases, card_features, merchant_features

seeds = st.integers(0, 2**32)
OPERATIONS = ("commit", "commit", "rollback", "dump", "full", "load")
plans = st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(1, 400)), max_size=25)
Plan = list[tuple[str, int]]


def profile(windows: Windows) -> Callable[[pd.DataFrame], NDArray[np.float64]]:
    return profile_cards(windows) if isinstance(windows, CardWindows) else profile_merchants(windows)


def run(
    windows: Windows, log: pd.DataFrame, plan: Plan, anew: Callable[[], Windows]
) -> tuple[NDArray[np.float64], Windows]:
    """Features of ``log``, profiled in batches of the plan's sizes, after each of which its operation is done."""
    features: list[NDArray[np.float64]] = []
    saved, start = Saved(), 0
    saved.take(windows.dump(full=True))
    for number in range(len(log)):
        if start >= len(log):
            break
        operation, size = plan[number] if number < len(plan) else ("commit", 100)
        batch = log.iloc[start : start + size]
        if operation == "rollback":
            before, stream_time_us = contents(windows), windows.stream_time_us
            for part in (batch.iloc[: size // 2], batch.iloc[size // 2 :]):
                profile(windows)(part)
            windows.rollback()
            assert contents(windows) == before
            assert windows.stream_time_us == stream_time_us
        features.append(profile(windows)(batch))
        windows.commit()
        start += size
        if operation in ("dump", "full", "load"):
            saved.take(windows.dump(full=operation == "full"))
            assert saved.whole()
        if operation == "load":
            before = contents(windows)
            windows.close()
            windows = anew()
            windows.load(saved.values, saved.columns)
            assert contents(windows) == before
    contents(windows)
    return np.vstack(features), windows


@given(card_logs(), plans)
def test_cards_equal_the_reference_whatever_is_done_between(log: pd.DataFrame, plan: Plan) -> None:
    plan = [(operation, size % 12 + 1) for operation, size in plan]
    got, _ = run(CardWindows(), log, plan, CardWindows)
    assert_agrees(got, card_features(log), CARD_FEATURES, log)


@given(merchant_logs(), plans)
def test_merchants_equal_the_reference_whatever_is_done_between(log: pd.DataFrame, plan: Plan) -> None:
    plan = [(operation, size % 12 + 1) for operation, size in plan]
    got, _ = run(MerchantWindows(), log, plan, MerchantWindows)
    assert_agrees(got, merchant_features(log), MERCHANT_FEATURES, log)


@settings(max_examples=25)
@given(seeds, plans, st.booleans())
def test_long_logs_do_not_show_what_is_done_between(seed: int, plan: Plan, busy: bool) -> None:
    """Against one call that never commits, sweeps or loads."""
    cards = busy_card_log(seed, 1_500) if busy else passing_cards_log(seed, 1_500)
    merchants = busy_merchant_log(seed, 1_500) if busy else passing_merchants_log(seed, 1_500)
    got, _ = run(CardWindows(), cards, plan, CardWindows)
    assert got.tobytes() == profile_cards(CardWindows())(cards).tobytes()
    got, _ = run(MerchantWindows(), merchants, plan, MerchantWindows)
    assert got.tobytes() == profile_merchants(MerchantWindows())(merchants).tobytes()


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("operation", ["rollback", "load"])
def test_small_timelines_grow_and_shrink_in_one_chunk(operation: str, seed: int) -> None:
    """Batches that renew chunks, some of which another card takes at once, are taken back and saved."""
    log = steady_cards_log(seed, 600)
    got, windows = run(CardWindows(), log, [(operation, 40)] * 15, CardWindows)
    assert_agrees(got, card_features(log), CARD_FEATURES, log)
    state = windows.state
    slots = state.slots.reshape(-1, SLOT_WORDS)[1 : windows.entities + 1]
    in_one_chunk = slots[:, SLOT.head] == slots[:, SLOT.tail]
    assert in_one_chunk.sum() >= 3
    assert (slots[in_one_chunk, SLOT.held] <= LARGEST_BLOCK).all()
    chunks = state.chunks.reshape(-1, CHUNK_WORDS)[slots[in_one_chunk, SLOT.head]]
    assert len(set(chunks[:, CHUNK.capacity])) > 1
    # What a card no more uses, another one has taken, or will.
    assert state.meta[META.chunks_end] < 24


def test_all_chunks_of_a_chain_know_their_totals() -> None:
    """Also where growing timelines have left small chunks behind."""
    _, windows = run(MerchantWindows(), busy_merchant_log(0, 1_500), [], MerchantWindows)
    chunks = windows.state.chunks.reshape(-1, CHUNK_WORDS)
    chains = 0
    for slot in windows.state.slots.reshape(-1, SLOT_WORDS)[1 : windows.entities + 1]:
        chunk = slot[SLOT.head] if slot[SLOT.head] != slot[SLOT.tail] else 0
        chains += chunk > 0
        while chunk > 0:
            assert chunks[chunk, CHUNK.capacity] >= LEAST_WITH_TOTALS
            chunk = chunks[chunk, CHUNK.next]
    assert chains > 0


@pytest.mark.parametrize("seed", range(2))
def test_entities_that_pass_equal_the_reference(seed: int) -> None:
    cards, merchants = passing_cards_log(seed, 700), passing_merchants_log(seed, 700)
    got, _ = run(CardWindows(), cards, [("commit", 20)] * 40, CardWindows)
    assert_agrees(got, card_features(cards), CARD_FEATURES, cards)
    got, _ = run(MerchantWindows(), merchants, [("commit", 20)] * 40, MerchantWindows)
    assert_agrees(got, merchant_features(merchants), MERCHANT_FEATURES, merchants)


def whole_profile(windows: CardWindows, log: pd.DataFrame) -> CardProfile:
    return windows.profile(
        keys(log["card_id"].tolist()), keys(log["merchant_id"].tolist()),
        *(log[name].to_numpy() for name in ("event_time_us", "amount_minor", "counts", "hour", "weekday")),
    )  # fmt: skip


@given(st.one_of(card_logs(), st.integers(0, 99).map(lambda seed: passing_cards_log(seed, 200))), st.integers(1, 30))
def test_cases_are_those_of_the_reference(log: pd.DataFrame, size: int) -> None:
    windows, want = CardWindows(), card_cases(log)
    for start in range(0, len(log), size):
        batch, expected = log.iloc[start : start + size], want.iloc[start : start + size]
        whole_profile(windows, log.iloc[start:])
        windows.rollback()
        got = whole_profile(windows, batch)
        windows.commit()
        assert got.case_start_us.tolist() == expected["case_start_us"].tolist()
        assert got.case_sequence.tolist() == expected["case_sequence"].tolist()


def test_a_card_and_its_case_are_forgotten_behind_the_horizon() -> None:
    windows, log = CardWindows(), passing_cards_log(0, 1).assign(counts=False)
    profile_cards(windows)(log)
    assert windows.entities == 1
    windows.rollback()
    assert windows.entities == 0
    profile_cards(windows)(log)
    windows.commit()
    for beyond_us, held in ((-1, 2), (0, 1)):
        other = log.assign(card_id="other", event_time_us=log["event_time_us"] + HORIZON_US + beyond_us)
        profile_cards(windows)(other)
        windows.commit()
        assert len(contents(windows)) == held


def test_the_newest_time_is_the_partitions() -> None:
    windows = MerchantWindows()
    assert windows.stream_time_us == 0
    log = passing_merchants_log(1, 300)
    profile_merchants(windows)(log)
    assert windows.stream_time_us == log.loc[log["kind"] == "transaction", "event_time_us"].max()
    windows.rollback()
    assert windows.stream_time_us == 0


@pytest.mark.parametrize("kind", ["cards", "merchants"])
def test_state_stays_bounded_while_entities_come_and_go(kind: str) -> None:
    """A year and a half of entities that live for a day or two: the tables stop growing."""
    windows: Windows = CardWindows() if kind == "cards" else MerchantWindows()
    make = passing_cards_log if kind == "cards" else passing_merchants_log
    log = make(5, 3_000)
    days = (log["event_time_us"].max() - START_US) / DAY
    assert days > 10 * HORIZON_US / DAY
    used = []
    for start in range(0, len(log), 50):
        profile(windows)(log.iloc[start : start + 50])
        windows.commit()
        used.append(windows.nbytes)
    held = contents(windows)
    assert max(used[len(used) // 3 :]) <= 1.3 * max(used[: len(used) // 3])
    floor_us = windows.stream_time_us - HORIZON_US
    live = sum(time > floor_us for item in held.values() for time, *_ in item.events)
    assert windows.events < 3 * live + 200
    names = log["card_id" if kind == "cards" else "merchant_id"]
    assert len(held) < 0.5 * names.nunique()


def test_only_what_changed_is_dumped_again() -> None:
    windows, log = CardWindows(), busy_card_log(0, 3_000)
    many = log.assign(card_id=[f"c{k}" for k in range(len(log))])
    for _ in range(10):
        profile_cards(windows)(many)
        many["event_time_us"] += 1
    windows.commit()
    _, first = windows.dump(full=True)
    profile_cards(windows)(many.iloc[-1:])
    windows.commit()
    _, second = windows.dump()
    assert sum(len(column.changed) for column in second.values()) <= 6
    assert sum(len(column.changed) for column in first.values()) > 20
    assert not any(column.changed for column in windows.dump()[1].values())
    assert all(column.changed for column in windows.dump(full=True)[1].values())


def test_what_is_not_committed_is_not_dumped() -> None:
    windows = CardWindows()
    profile_cards(windows)(busy_card_log(0, 10))
    with pytest.raises(RuntimeError, match="commit or roll it back"):
        windows.dump()
    with pytest.raises(RuntimeError, match="empty windows"):
        windows.load(b"", {})


def test_a_dump_that_does_not_fit_is_refused() -> None:
    windows = CardWindows()
    profile_cards(windows)(busy_card_log(0, 10))
    windows.commit()
    saved = Saved()
    saved.take(windows.dump(full=True))
    with pytest.raises(ValueError, match="bytes of values"):
        CardWindows().load(saved.values[:-8], saved.columns)
    with pytest.raises(ValueError, match="lack the column"):
        CardWindows().load(saved.values, {})
    shorter = {name: column._replace(items=column.items - 1) for name, column in saved.columns.items()}
    with pytest.raises(ValueError, match="items of <i8"):
        CardWindows().load(saved.values, shorter)


def test_columns_of_unequal_lengths_are_refused() -> None:
    log = busy_card_log(0, 10)
    with pytest.raises(ValueError, match="every column must have 9 rows"):
        CardWindows().profile(
            keys(["c"] * 9), keys(["m"] * 9),
            *(log[name].to_numpy() for name in ("event_time_us", "amount_minor", "counts", "hour", "weekday")),
        )  # fmt: skip


def test_busy_timelines_grow_large_chunks_and_take_late_events() -> None:
    """Chunks of every size, split by late events, against one run that never undoes."""
    size = 60_000
    generator = np.random.default_rng(3)
    times = START_US + np.arange(size) * 1_000_000
    times[generator.random(size) < 0.02] -= DAY // 4
    log = (
        busy_card_log(0, 1)
        .iloc[np.zeros(size, int)]
        .assign(
            card_id=np.where(generator.random(size) < 0.9, "hot", "warm"),
            event_time_us=times,
            amount_minor=generator.integers(1, 10**13, size),
            counts=True,
        )
    )
    windows = CardWindows()
    got = []
    for start in range(0, size, 10_000):
        batch = log.iloc[start : start + 10_000]
        profile_cards(windows)(batch)
        windows.rollback()
        got.append(profile_cards(windows)(batch))
        windows.commit()
    held = contents(windows)
    assert max(len(item.events) for item in held.values()) > 50_000
    chunks = windows.state.chunks
    assert len(chunks) // CHUNK_WORDS < 2_000
    # The last rows, by hand.
    features = np.vstack(got)
    hot = log.iloc[:-1][(log["card_id"] == log["card_id"].iloc[-1]).to_numpy()[:-1]]
    within = hot[hot["event_time_us"] > times[-1] - 3_600_000_000]
    within = within[within["event_time_us"] <= times[-1]]
    assert features[-1, CARD_FEATURES.index("card_count_1h")] == len(within)
    assert features[-1, CARD_FEATURES.index("card_sum_1h")] == int(within["amount_minor"].sum()) / 100
    assert features[-1, CARD_FEATURES.index("card_max_1h")] == within["amount_minor"].max() / 100
    assert features[-1, CARD_FEATURES.index("card_min_1h")] == within["amount_minor"].min() / 100


def storages(directory: Path) -> Callable[[], Storage]:
    return lambda: MappedStorage(directory)


@pytest.mark.parametrize("seed", range(2))
def test_mapped_files_hold_the_same(seed: int, tmp_path: Path) -> None:
    cards, merchants = passing_cards_log(seed, 1_500), busy_merchant_log(seed, 1_500)
    plan = [(OPERATIONS[k % 6], 60) for k in range(30)]
    opened = storages(tmp_path / "cards")
    got, windows = run(CardWindows(opened()), cards, plan, lambda: CardWindows(opened()))
    assert got.tobytes() == profile_cards(CardWindows())(cards).tobytes()
    windows.close()
    opened = storages(tmp_path / "merchants")
    got, windows = run(MerchantWindows(opened()), merchants, plan, lambda: MerchantWindows(opened()))
    assert got.tobytes() == profile_merchants(MerchantWindows())(merchants).tobytes()
    assert any((tmp_path / "merchants").iterdir())
    windows.close()
    assert not (tmp_path / "merchants").exists() or not any((tmp_path / "merchants").iterdir())


def test_tables_grow_by_what_is_needed() -> None:
    windows = CardWindows()
    log = busy_card_log(0, 1).iloc[np.zeros(9_000, int)].assign(card_id=[f"c{k}" for k in range(9_000)])
    got = profile_cards(windows)(log)
    windows.rollback()
    assert contents(windows) == {}
    assert profile_cards(windows)(log).tobytes() == got.tobytes()
    assert len(contents(windows)) == 9_000


def test_every_card_is_found_while_others_are_forgotten_around_it() -> None:
    """A nearly full index, from which cards leave and into which others come."""
    windows, size = CardWindows(), 1_900
    log = busy_card_log(0, 1).iloc[np.zeros(size, int)]
    for generation in range(3):
        cards = [f"{generation}-{number}" for number in range(size)]
        arriving = log.assign(card_id=cards, event_time_us=START_US + generation * 38 * DAY)
        for start in range(0, size, 190):
            profile_cards(windows)(arriving.iloc[start : start + 190])
            windows.rollback()
            profile_cards(windows)(arriving.iloc[start : start + 190])
            windows.commit()
            contents(windows)
    assert size <= windows.entities < 1.5 * size


@pytest.mark.parametrize(("beyond_us", "sequence"), [(-1, 2), (0, 1)])
def test_a_case_that_began_37_days_ago_is_over_for_late_ones_too(beyond_us: int, sequence: int) -> None:
    log = busy_card_log(0, 1).iloc[[0, 0, 0]].assign(card_id=["a", "b", "a"])
    log["event_time_us"] = START_US + np.array([0, HORIZON_US + beyond_us, 1])
    got, want = whole_profile(CardWindows(), log), card_cases(log)
    assert got.case_sequence.tolist() == want["case_sequence"].tolist() == [1, 1, sequence]
    assert got.case_start_us.tolist() == want["case_start_us"].tolist()
