"""The simulator against its published specification."""

from datetime import UTC, date, datetime
from itertools import islice

import numpy as np
import pandas as pd
import pytest

from pipeline.history.canonical_columns import COLUMNS
from pipeline.simulation.simulator import Profiles, Scenario, make_profiles, simulate_days, stream_days

DAYS = 60
FRAUD_BUILT_UP = pd.Timestamp("2018-04-30", tz="UTC")


@pytest.fixture(scope="module")
def profiles() -> Profiles:
    return make_profiles(np.random.default_rng(0))


@pytest.fixture(scope="module")
def frame(profiles: Profiles) -> pd.DataFrame:
    return simulate_days(profiles, seed=0, first_day=0, n_days=DAYS)


def test_the_frame_has_the_canonical_columns(frame: pd.DataFrame) -> None:
    assert tuple(frame.columns) == COLUMNS
    assert frame["event_time"].dtype == pd.DatetimeTZDtype("us", "UTC")
    assert frame["amount"].dtype == np.float64
    assert frame["amount_minor"].dtype == np.int64
    assert frame["fraud"].dtype == np.bool_
    assert frame["transaction_id"].is_unique
    assert frame["event_time"].is_monotonic_increasing
    assert set(frame["currency"]) == {"EUR"}
    assert all(type(value) is str for value in frame.loc[0, ["transaction_id", "card_id", "merchant_id"]])


def test_amounts_agree_to_the_cent(frame: pd.DataFrame) -> None:
    assert (frame["amount_minor"] >= 0).all()
    assert (frame["amount"] == frame["amount"].round(2)).all()
    assert (frame["amount"] * 100).round().astype("int64").equals(frame["amount_minor"])


def test_habits_follow_the_published_ranges(profiles: Profiles) -> None:
    assert profiles.cards == 5_000
    assert profiles.merchants == 10_000
    assert profiles.mean_amount.min() >= 5
    assert profiles.mean_amount.max() <= 100
    assert profiles.mean_amount.mean() == pytest.approx(52.5, abs=2)
    assert profiles.daily_rate.mean() == pytest.approx(2.0, abs=0.08)
    # A disc of radius 5 in a square of 100 x 100 holds pi/400 of 10,000 merchants, less at the border.
    assert 70 < np.diff(profiles.reachable_from).mean() < 78.6
    assert np.diff(profiles.reachable_from).min() >= 1


def test_traffic_follows_the_published_rates(frame: pd.DataFrame, profiles: Profiles) -> None:
    a_day = len(frame) / DAYS
    # P(0 < N(43200, 20000) < 86400) = 0.969.
    assert a_day == pytest.approx(profiles.daily_rate.sum() * 0.969, rel=0.01)
    second = (frame["event_time"] - frame["event_time"].dt.floor("D")).dt.total_seconds()
    assert second.mean() == pytest.approx(43_200, abs=150)
    assert second.min() >= 1
    assert second.max() < 86_400
    # Around 53 in the published data; the average customer spends 52.5, and negative amounts are redrawn.
    assert frame["amount"].mean() == pytest.approx(54, abs=2.5)
    assert frame["amount"].median() == pytest.approx(45.5, abs=2.5)


def test_fraud_shares_are_the_published_ones(frame: pd.DataFrame) -> None:
    built_up = frame[frame["event_time"] >= FRAUD_BUILT_UP]
    # 183 published days hold 14,681 frauds in 1,754,155 transactions: 0.84 %, of which 7 %, 62 % and 31 % by scenario.
    assert built_up["fraud"].mean() == pytest.approx(0.0087, abs=0.0012)
    shares = built_up.loc[built_up["fraud"], "fraud_type"].value_counts(normalize=True)
    assert shares["amount"] == pytest.approx(0.07, abs=0.03)
    assert shares["merchant"] == pytest.approx(0.62, abs=0.09)
    assert shares["card"] == pytest.approx(0.31, abs=0.09)
    assert (frame["fraud"] == frame["fraud_type"].notna()).all()
    first_day = frame[frame["event_time"] < pd.Timestamp("2018-04-02", tz="UTC")]
    assert first_day["fraud"].sum() < built_up["fraud"].sum() / (DAYS - 29) / 3


def test_amounts_over_the_limit_are_fraud(frame: pd.DataFrame) -> None:
    large = frame[frame["amount"] > 220]
    assert len(large) > 100
    assert large["fraud"].all()
    assert (frame.loc[frame["fraud_type"] == "amount", "amount"] > 220).all()


def test_a_compromised_merchant_takes_only_fraud_for_28_days(frame: pd.DataFrame) -> None:
    fraud = frame[frame["fraud_type"] == "merchant"]
    day = (frame["event_time"] - frame["event_time"].dt.floor("D").iloc[0]).dt.days
    first_day = day[fraud.index].groupby(fraud["merchant_id"]).min()
    last_day = day[fraud.index].groupby(fraud["merchant_id"]).max()
    complete = first_day[(first_day > 28) & (first_day < 32)]
    assert len(complete) >= 4
    for merchant, first in complete.items():
        here = frame[(frame["merchant_id"] == merchant) & (day >= first) & (day <= last_day[merchant])]
        assert here["fraud"].all()
    # Two merchants a day for 28 days; a merchant without a transaction in its time is not seen.
    spans = last_day.sub(first_day)[first_day <= 32]
    assert 26 <= spans.quantile(0.9) <= 27
    on_day_40 = fraud[day[fraud.index].between(40, 40)]["merchant_id"].nunique()
    assert 25 < on_day_40 <= 56


def test_a_compromised_card_pays_five_times_a_third_of_the_time() -> None:
    def month(cards_per_day: int) -> pd.DataFrame:
        scenario = Scenario(merchants_per_day=0, cards_per_day=cards_per_day, fraud_amount_minor=10**9)
        return simulate_days(make_profiles(np.random.default_rng(0), scenario=scenario), 3, 0, 30)

    frame, honest = month(3), month(0)
    assert not honest["fraud"].any()
    changed = frame["amount_minor"] != honest["amount_minor"]
    assert (frame["fraud"] | ~changed).all()
    ratio = frame.loc[changed, "amount_minor"] / honest.loc[changed, "amount_minor"]
    assert set(ratio) <= {5.0, 25.0}
    assert (ratio == 5.0).mean() > 0.95
    # Of the transactions that a card makes within 14 days, a third: 42 cards with two a day from day 13 on.
    later = frame[frame["event_time"] >= pd.Timestamp("2018-04-14", tz="UTC")]
    assert later["fraud"].sum() / 17 == pytest.approx(42 * 2 * 0.969 / 3, rel=0.2)


def test_a_share_of_what_a_compromised_merchant_takes_can_be_fraud() -> None:
    def made(share: float) -> pd.DataFrame:
        scenario = Scenario(merchants_per_day=5, merchant_share=share)
        return simulate_days(make_profiles(np.random.default_rng(2), 300, 200, scenario), 2, 20, 10)

    whole, part = made(1.0), made(0.3)
    taken = whole["fraud_type"] == "merchant"
    assert taken.sum() > 500
    found = part.loc[taken, "fraud_type"] == "merchant"
    assert 0.25 < found.mean() < 0.35
    assert not (part.loc[~taken, "fraud_type"] == "merchant").any()
    columns = ["transaction_id", "card_id", "merchant_id", "amount_minor", "event_time"]
    pd.testing.assert_frame_equal(whole[columns], part[columns])


@pytest.mark.parametrize("wrong", [{"merchant_share": 0.0}, {"card_share": 1.5}, {"card_factor": 1}])
def test_a_world_without_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="shares of fraud lie above 0"):
        Scenario(**wrong)  # type: ignore[arg-type]


def test_ranges_of_days_join_to_the_whole(profiles: Profiles) -> None:
    whole = simulate_days(profiles, 5, 20, 4)
    parts = pd.concat([simulate_days(profiles, 5, 20, 1), simulate_days(profiles, 5, 21, 3)], ignore_index=True)
    pd.testing.assert_frame_equal(whole, parts)
    streamed = pd.concat(list(islice(stream_days(profiles, 5, first_day=20), 4)), ignore_index=True)
    pd.testing.assert_frame_equal(whole, streamed)


def test_the_seed_decides(profiles: Profiles) -> None:
    pd.testing.assert_frame_equal(simulate_days(profiles, 1, 0, 1), simulate_days(profiles, 1, 0, 1))
    assert len(simulate_days(profiles, 1, 0, 1)) != len(simulate_days(profiles, 2, 0, 1))
    assert (make_profiles(np.random.default_rng(1), 9, 9).mean_amount != profiles.mean_amount[:9]).any()


def test_the_calendar_starts_where_it_is_asked_to(profiles: Profiles) -> None:
    frame = simulate_days(profiles, 0, 1, 1, start=date(2024, 2, 28))
    assert frame["event_time"].iloc[0] >= datetime(2024, 2, 29, tzinfo=UTC)
    assert frame["event_time"].iloc[-1] < datetime(2024, 3, 1, tzinfo=UTC)
    assert frame["transaction_id"].iloc[0] == "20240229-000000"


def test_a_small_population_still_trades() -> None:
    profiles = make_profiles(np.random.default_rng(0), cards=20, merchants=5)
    assert np.diff(profiles.reachable_from).min() >= 1
    assert len(simulate_days(profiles, 0, 0, 3)) > 20


def test_no_days_give_an_empty_frame(profiles: Profiles) -> None:
    frame = simulate_days(profiles, 0, 3, 0)
    assert len(frame) == 0
    assert tuple(frame.columns) == COLUMNS


@pytest.mark.parametrize(("seed", "first_day", "n_days"), [(-1, 0, 1), (0, -1, 1), (0, 0, -1)])
def test_negative_arguments_are_refused(profiles: Profiles, seed: int, first_day: int, n_days: int) -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        simulate_days(profiles, seed, first_day, n_days)


def test_a_population_below_the_daily_compromises_is_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        make_profiles(np.random.default_rng(0), cards=2, merchants=100)
