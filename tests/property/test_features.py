"""The kernel of windows agrees with the slow reference on every value, whatever the log and its batches."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.features.catalogue import CARD_FEATURES, MERCHANT_FEATURES, WINDOW_FEATURES
from pipeline.features.kernel import CardWindows, MerchantWindows
from tests.helpers.expected import CARRIED
from tests.helpers.keys import keys
from tests.property.strategies import DAY, START_US, busy_card_log, busy_merchant_log, card_logs, merchant_logs
from tests.reference.features import card_features, merchant_features

INEXACT = ("mean", "std", "amount_to", "deviation", "surge", "risk")
"""Features whose last bits depend on the order of divisions and roots; all others must be equal."""
EXACT_INTEGERS = 2**53
DECLARED = CARRIED.union(WINDOW_FEATURES)
"""Windows that the packaged set declares, and what they read: ``test_declarations`` has their like."""
KNOWN = {"legitimate": 0, "fraud": 1, "none": 2}

Profile = Callable[[pd.DataFrame], NDArray[np.float64]]


def profile_cards(windows: CardWindows) -> Profile:
    def profile(frame: pd.DataFrame) -> NDArray[np.float64]:
        return windows.profile(
            keys(frame["card_id"].tolist()),
            keys(frame["merchant_id"].tolist()),
            frame["event_time_us"].to_numpy(np.int64),
            frame["amount_minor"].to_numpy(np.int64),
            frame["counts"].to_numpy(np.bool_),
            frame["hour"].to_numpy(np.float64),
            frame["weekday"].to_numpy(np.float64),
        ).features

    return profile


def profile_merchants(windows: MerchantWindows) -> Profile:
    def profile(frame: pd.DataFrame) -> NDArray[np.float64]:
        return windows.profile(
            (frame["kind"] == "label").to_numpy(np.uint8),
            keys(frame["merchant_id"].tolist()),
            frame["transaction"].to_numpy(np.uint64),
            frame["event_time_us"].to_numpy(np.int64),
            frame["amount_minor"].to_numpy(np.int64),
            frame["counts"].to_numpy(np.bool_),
            frame["outlier"].to_numpy(np.bool_),
            frame["known"].map(KNOWN).to_numpy(np.int8),
            frame["known_at_us"].to_numpy(np.int64),
        )

    return profile


def in_batches(profile: Profile, frame: pd.DataFrame, cuts: Sequence[int]) -> NDArray[np.float64]:
    edges = sorted({0, len(frame), *(cut % len(frame) for cut in cuts)})
    return np.vstack([profile(frame.iloc[start:end]) for start, end in itertools.pairwise(edges)])


def assert_agrees(got: NDArray[np.float64], want: pd.DataFrame, names: Sequence[str], log: pd.DataFrame) -> None:
    assert set(want.columns) == set(names) - DECLARED
    assert got.shape == (len(log), len(names))
    for column, name in enumerate(names):
        if name in DECLARED:
            continue
        expected = want[name].to_numpy(np.float64)
        tolerance = 1e-12 if any(part in name for part in INEXACT) else 0.0
        if "_sum_" in name:
            # A sum above 2**53 minor units is rounded once by the reference, and twice by float(sum) / 100.
            large = np.abs(np.nan_to_num(expected)) * 100 >= EXACT_INTEGERS
            allowed = np.where(large, 1e-15, 0.0)
        else:
            allowed = np.full(len(log), tolerance)
        actual = got[:, column]
        close = (np.isnan(expected) & np.isnan(actual)) | (np.abs(actual - expected) <= allowed * np.abs(expected))
        if not close.all():
            row = int(np.argmin(close))
            pytest.fail(
                f"{name} of row {row} is {actual[row]!r}, the reference says {expected[row]!r}; "
                f"the log up to it:\n{log.iloc[: row + 1].to_string()}"
            )


@given(card_logs())
def test_card_features_equal_the_reference(log: pd.DataFrame) -> None:
    got = profile_cards(CardWindows())(log)
    assert_agrees(got, card_features(log), CARD_FEATURES, log)


@given(merchant_logs())
def test_merchant_features_equal_the_reference(log: pd.DataFrame) -> None:
    got = profile_merchants(MerchantWindows())(log)
    assert_agrees(got, merchant_features(log), MERCHANT_FEATURES, log)


@pytest.mark.parametrize("seed", range(3))
def test_a_busy_card_equals_the_reference(seed: int) -> None:
    log = busy_card_log(seed, 400)
    got = in_batches(profile_cards(CardWindows()), log, (1, 2, 90, 91, 300))
    assert_agrees(got, card_features(log), CARD_FEATURES, log)


@pytest.mark.parametrize("seed", range(3))
def test_a_busy_merchant_equals_the_reference(seed: int) -> None:
    log = busy_merchant_log(seed, 400)
    got = in_batches(profile_merchants(MerchantWindows()), log, (1, 2, 90, 91, 300))
    assert_agrees(got, merchant_features(log), MERCHANT_FEATURES, log)


@given(st.integers(0, 2**32), st.lists(st.integers(0, 2_000), max_size=30))
def test_batches_do_not_show(seed: int, cuts: list[int]) -> None:
    """Bit for bit, NaN included: a replay cuts its batches elsewhere than live traffic did."""
    cards, merchants = busy_card_log(seed, 2_000), busy_merchant_log(seed, 2_000)
    whole_cards = profile_cards(CardWindows())(cards)
    whole_merchants = profile_merchants(MerchantWindows())(merchants)
    assert in_batches(profile_cards(CardWindows()), cards, cuts).tobytes() == whole_cards.tobytes()
    assert in_batches(profile_merchants(MerchantWindows()), merchants, cuts).tobytes() == whole_merchants.tobytes()


def test_the_same_log_gives_the_same_bytes_beside_other_entities() -> None:
    """What a card sees does not depend on who shares its partition."""
    log = busy_card_log(7, 500)
    hot = log[log["card_id"] == "hot"]
    together = profile_cards(CardWindows())(log)[(log["card_id"] == "hot").to_numpy()]
    assert together.tobytes() == profile_cards(CardWindows())(hot).tobytes()


def test_labels_get_no_features() -> None:
    log = busy_merchant_log(3, 200)
    got = profile_merchants(MerchantWindows())(log)
    is_label = (log["kind"] == "label").to_numpy()
    assert is_label.any()
    assert np.isnan(got[is_label]).all()
    assert not np.isnan(got[~is_label][:, 0]).any()


def test_squares_of_the_largest_amounts_do_not_overflow() -> None:
    """10**13 squared has 87 bits, and a hundred of them 94."""
    log = busy_card_log(1, 150).assign(amount_minor=10**13, card_id="hot", counts=True)
    log.loc[::2, "amount_minor"] = 10**13 - 1
    log["event_time_us"] = START_US + np.arange(150) * (DAY // 24)
    got = profile_cards(CardWindows())(log)
    assert_agrees(got, card_features(log), CARD_FEATURES, log)
    assert got[-1, CARD_FEATURES.index("card_std_30d")] == pytest.approx(0.005, rel=1e-3)


def merchant_log(*rows: tuple[int, int, str, int]) -> pd.DataFrame:
    """Rows of (transaction, event time, known, known at); ``known`` is empty for the transaction itself."""
    return pd.DataFrame(
        {
            "kind": ["label" if known else "transaction" for _, _, known, _ in rows],
            "merchant_id": "m",
            "transaction": np.array([number for number, _, _, _ in rows], np.uint64),
            "event_time_us": [START_US + time for _, time, _, _ in rows],
            "amount_minor": 100,
            "counts": [not known for _, _, known, _ in rows],
            "outlier": False,
            "known": [known or "none" for _, _, known, _ in rows],
            "known_at_us": [START_US + known_at for _, _, _, known_at in rows],
        }
    )


def check_merchant(log: pd.DataFrame, **expected: float) -> None:
    """The last row has these values, and the kernel and the reference agree on all rows."""
    got = profile_merchants(MerchantWindows())(log)
    assert_agrees(got, merchant_features(log), MERCHANT_FEATURES, log)
    for name, value in expected.items():
        assert got[-1, MERCHANT_FEATURES.index(name)] == value, name


@pytest.mark.parametrize("first", ["fraud", "legitimate"])
def test_of_one_instant_the_transaction_first_labelled_later_is_newest(first: str) -> None:
    """A correction of the other one does not make that one newer."""
    second = "legitimate" if first == "fraud" else "fraud"
    log = merchant_log(
        (1, 0, "", 0), (2, 0, "", 0), (2, 0, first, 1), (1, 0, "none", 1), (1, 0, second, 1), (2, 0, first, 2),
        (3, DAY, "", 0),
    )  # fmt: skip
    check_merchant(log, merchant_newest_label=float(second == "fraud"), merchant_known_count_14d=2)


@pytest.mark.parametrize(("beyond_us", "count"), [(0, 0), (-1, 1)])
def test_a_label_leaves_37_days_behind_the_newest_transaction_of_any_merchant(beyond_us: int, count: int) -> None:
    """Seen from a transaction that comes late."""
    newest = 37 * DAY + beyond_us
    log = merchant_log((1, 0, "", 0), (1, 0, "fraud", 1), (2, newest, "", 0), (3, 7 * DAY, "", 0))
    log.loc[2, "merchant_id"] = "elsewhere"
    check_merchant(log, merchant_known_count_30d=count, merchant_count_30d=count)


@pytest.mark.parametrize(("beyond_us", "count"), [(0, 0), (-1, 1)])
def test_what_comes_37_days_late_does_not_enter(beyond_us: int, count: int) -> None:
    """Neither a transaction nor a label; a label alone moves no horizon."""
    newest = 37 * DAY + beyond_us
    log = merchant_log(
        (1, newest, "", 0), (2, 0, "", 0), (2, 0, "fraud", 1), (3, 2 * newest, "none", 1), (4, DAY, "", 0)
    )  # fmt: skip
    check_merchant(log, merchant_known_count_30d=count, merchant_count_30d=count)


@pytest.mark.parametrize(("beyond_us", "count"), [(0, 0), (-1, 1)])
def test_a_card_forgets_37_days_behind_the_newest_transaction_of_any_card(beyond_us: int, count: int) -> None:
    """Of a refund, too: every transaction moves the partition's time."""
    log = busy_card_log(0, 3).assign(card_id=["a", "b", "a"], counts=[True, False, True])
    log["event_time_us"] = START_US + np.array([0, 37 * DAY + beyond_us, DAY])
    got = profile_cards(CardWindows())(log)
    assert_agrees(got, card_features(log), CARD_FEATURES, log)
    assert got[-1, CARD_FEATURES.index("card_count_30d")] == count


@pytest.mark.parametrize(("at_us", "fraud"), [(9, 0), (10, 1), (19, 1), (20, 0)])
def test_knowledge_holds_from_the_moment_it_was_known(at_us: int, fraud: int) -> None:
    """A correction that claims to have been known before what it corrects starts no earlier."""
    log = merchant_log(
        (1, 0, "", 0), (1, 0, "legitimate", 10), (1, 0, "fraud", 5), (1, 0, "none", 20), (2, at_us, "", 0)
    )  # fmt: skip
    check_merchant(log, merchant_known_fraud_30d=fraud, merchant_known_count_30d=fraud)


@pytest.mark.parametrize(("amount_minor", "outliers"), [(300, 0), (301, 1)])
def test_an_outlier_is_more_than_three_times_the_median(amount_minor: int, outliers: int) -> None:
    log = busy_card_log(0, 7).assign(card_id="c", counts=True, event_time_us=START_US + np.arange(7) * 1_000_000)
    log["amount_minor"] = [100, 100, 100, 100, 100, amount_minor, 1]
    got = profile_cards(CardWindows())(log)
    assert_agrees(got, card_features(log), CARD_FEATURES, log)
    assert got[-1, CARD_FEATURES.index("card_outlier_count_1d")] == outliers
