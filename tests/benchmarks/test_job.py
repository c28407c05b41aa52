"""Job (a): its input, the arithmetic of its reference, what peers share, and the checker."""

from collections.abc import Sequence

import msgspec
import numpy as np
import pandas as pd
import pytest

from schemas import messages
from tests.benchmarks.job import definition, prepare, reference
from tests.benchmarks.job.check import WrongAnswers, check
from tests.benchmarks.job.windows import Card, Transaction, inputs_of_batch, profile_of_history

DAY_MS = definition.DAY_MS
RECORDS = 3_000


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return prepare.transactions(RECORDS)


@pytest.fixture(scope="module")
def profile(frame: pd.DataFrame) -> pd.DataFrame:
    return reference.profiles(frame)


def test_the_input_is_seeded_and_lets_every_window_expire(frame: pd.DataFrame) -> None:
    assert len(frame) == RECORDS
    assert frame["transaction_id"].is_unique
    assert frame["time_ms"].is_monotonic_increasing
    assert frame["time_ms"].iloc[-1] - frame["time_ms"].iloc[0] > 40 * DAY_MS
    pd.testing.assert_frame_equal(frame, prepare.transactions(RECORDS))


def test_a_smaller_input_has_fewer_cards_and_as_much_in_each_window(profile: pd.DataFrame) -> None:
    larger = reference.profiles(prepare.transactions(3 * RECORDS))
    assert profile["count_30d"].mean() == pytest.approx(larger["count_30d"].mean(), rel=0.25)


def test_transactions_keep_the_wire_contract(frame: pd.DataFrame) -> None:
    values = prepare.encoded(frame)
    assert 210 <= np.mean([len(value) for value in values]) <= 226
    for value, (_, row) in zip(values[:50], frame.head(50).iterrows(), strict=True):
        decoded = msgspec.json.decode(value, type=messages.Transaction)
        assert (decoded.transaction_id, decoded.card_id) == (row["transaction_id"], row["card_id"])
        assert round(1_000 * msgspec.json.decode(value, type=Transaction).event_time.timestamp()) == row["time_ms"]
        assert int(100 * decoded.amount) == row["cents"]


def test_an_event_enters_after_its_own_windows_and_leaves_at_its_own_instant() -> None:
    start = 20_000 * DAY_MS
    times = [start, start, start + DAY_MS - 1, start + DAY_MS, start + 7 * DAY_MS, start + 30 * DAY_MS]
    frame = pd.DataFrame({"card_id": "c", "time_ms": times, "cents": [100, 300, 500, 700, 900, 1_100]})
    found = reference.profiles(frame)
    assert found["count_1d"].tolist() == [0, 1, 2, 1, 0, 0]
    assert found["count_7d"].tolist() == [0, 1, 2, 3, 2, 0]
    assert found["count_30d"].tolist() == [0, 1, 2, 3, 4, 3]
    assert found["mean_30d"].tolist() == [0, 1, 2, 3, 4, 7]


def test_engines_windows_are_the_reference_s_and_forget_what_has_left_them(
    frame: pd.DataFrame, profile: pd.DataFrame
) -> None:
    cards: dict[str, Card] = {}
    histories: dict[str, list[Sequence[int]]] = {}
    for card, time_ms, cents, expected in zip(
        frame["card_id"], frame["time_ms"].tolist(), frame["cents"].tolist(), profile.to_numpy().tolist(), strict=True
    ):
        assert list(cards.setdefault(card, Card()).profile(time_ms, cents)) == expected
        histories[card], found = profile_of_history(histories.get(card, []), time_ms, cents)
        assert list(found) == expected
    card = Card()
    counts = [card.profile(time_ms, 100)[2] for time_ms in range(0, 200 * DAY_MS, DAY_MS // 2)]
    assert counts[-1] == 59
    assert len(card.times_ms) < 150


def test_the_inputs_agree_to_the_last_bit(frame: pd.DataFrame, profile: pd.DataFrame) -> None:
    expected = reference.inputs(frame, profile)
    assert tuple(expected) == definition.INPUTS
    assert tuple(profile) == definition.PROFILE
    columns = (
        frame["cents"].to_numpy(),
        frame["time_ms"].to_numpy(),
        frame["mcc"].to_numpy(float),
        (frame["channel"] == "online").to_numpy(float),
        (frame["country"] != definition.HOME_COUNTRY).to_numpy(float),
    )
    batch = [msgspec.json.decode(value, type=Transaction) for value in prepare.encoded(frame)]
    many = inputs_of_batch(batch, columns[1].tolist(), columns[0].tolist(), profile.to_numpy(float).tolist())
    assert np.array_equal(many, expected.to_numpy())
    item = [
        definition.inputs_of_one(cents / 100, cents, time_ms, mcc, online, abroad, tuple(windows))
        for cents, time_ms, mcc, online, abroad, windows in zip(
            *(column.tolist() for column in columns), profile.to_numpy(float).tolist(), strict=True
        )
    ]
    assert np.array_equal(np.array(item), expected.to_numpy())


@pytest.fixture
def right(profile: pd.DataFrame) -> pd.DataFrame:
    answers = pd.DataFrame({"card_id": "c", "lightgbm": 0.2, "river": 0.4, "score": 0.3}, index=profile.index)
    return pd.concat([answers, profile], axis=1).set_axis([f"t{n}" for n in range(len(profile))])


def test_right_answers_pass_in_any_order(right: pd.DataFrame) -> None:
    check(right.iloc[::-1], right)


@pytest.mark.parametrize(
    ("name", "by"), [("count_7d", 1), ("mean_30d", 1e-6), ("score", 1e-5), ("river", np.nan), ("lightgbm", -1e-5)]
)
def test_a_wrong_value_is_named(right: pd.DataFrame, name: str, by: float) -> None:
    wrong = right.copy().astype({name: float})
    wrong.loc["t7", name] += by
    with pytest.raises(WrongAnswers, match=f"{name} differs in 1 of {RECORDS} decisions; t7"):
        check(wrong, right)


def test_a_missing_and_a_doubled_decision_are_found(right: pd.DataFrame) -> None:
    with pytest.raises(WrongAnswers, match=r"1 transactions have no decision, the first is \['t0'\]"):
        check(right.iloc[1:], right)
    with pytest.raises(WrongAnswers, match="decided twice: t3"):
        check(pd.concat([right, right.loc[["t3"]]]), right)
