"""Features of a history that is trained on: columns in, and nothing that was not known at the time."""

from datetime import datetime

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from pipeline.features.catalogue import FEATURES
from pipeline.learning.regimes import LabelRegime
from pipeline.replay.messages import event_times_us, identities_of
from tests.helpers.expected import CARRIED, windows_of
from tests.helpers.features import KnownLabels, compute_features, history_of, labels_known
from tests.helpers.logs import START, after, microseconds
from tests.reference.features import card_features, card_outliers, merchant_features


def history(seed: int = 0, size: int = 250) -> pd.DataFrame:
    """Seventy days of a few cards and merchants, some of the same instant."""
    random = np.random.default_rng(seed)
    times = np.sort(random.choice(random.uniform(0, 70, size // 2), size))
    return pd.DataFrame(
        {
            "transaction_id": [f"t{number}" for number in range(size)],
            "event_time": [after(float(days)) for days in times],
            "card_id": [f"c{number}" for number in random.integers(0, 5, size)],
            "merchant_id": [f"m{number}" for number in random.integers(0, 4, size)],
            "amount_minor": random.integers(1, 30_000, size),
            "transaction_type": random.choice(["purchase", "cash", "refund", "reversal"], size),
            "fraud": random.random(size) < 0.2,
        }
    )


def column(features: NDArray[np.float64], name: str) -> list[float]:
    values: list[float] = features[:, FEATURES.index(name)].tolist()
    return values


def reference(frame: pd.DataFrame, labels: KnownLabels) -> pd.DataFrame:
    """The same by the slow reference: labels stand before the first transaction at or after their time."""
    rows = frame.assign(
        event_time_us=[microseconds(time) for time in frame["event_time"]],
        hour=[(time - time.normalize()).total_seconds() / 3_600 for time in frame["event_time"]],
        weekday=[float(time.weekday()) for time in frame["event_time"]],
        counts=frame["transaction_type"].isin(["purchase", "cash"]),
        kind="transaction",
        transaction=range(len(frame)),
        known="none",
        known_at_us=0,
    )
    rows["outlier"] = card_outliers(rows)
    reported = rows.iloc[labels.row].assign(kind="label", known=np.where(labels.fraud, "fraud", "legitimate"))
    reported["known_at_us"] = labels.known_at_us
    log = pd.concat(
        [reported.assign(at=reported["known_at_us"]), rows.assign(at=rows["event_time_us"])], ignore_index=True
    )
    log = log.sort_values("at", kind="stable", ignore_index=True)
    merchant = merchant_features(log)[(log["kind"] == "transaction").to_numpy()].reset_index(drop=True)
    cards = pd.concat([card_features(rows), windows_of("card", rows)], axis=1)
    windows = windows_of("merchant", rows.join(cards[cards.columns.difference(rows.columns)]))
    return pd.concat([cards, merchant, windows], axis=1)


@pytest.mark.parametrize("seed", range(4))
def test_features_are_those_of_the_reference(seed: int) -> None:
    """Whoever gets a label, and whether it says the opposite first."""
    frame = history(seed)
    regime = LabelRegime(
        delay_days=3.0, delay_spread=0.7 * (seed > 0), reported="all" if seed < 2 else "mixed", early_share=0.2,
        corrected_share=0.3 * (seed > 1), correction_days=5.0,
    )  # fmt: skip
    fraud, identity = frame["fraud"].to_numpy(bool), identities_of(frame)
    known_us = regime.known_at_us(event_times_us(frame), fraud, identity)
    labels = labels_known(known_us, fraud, regime.corrected_at_us(known_us, identity))
    features = history_of(frame, regime).training_set().features
    assert features.shape == (len(frame), len(FEATURES))
    names = [name for name in FEATURES if name not in CARRIED]
    found = features[:, [FEATURES.index(name) for name in names]]
    np.testing.assert_allclose(found, reference(frame, labels)[names].to_numpy(float), rtol=1e-9, atol=1e-9)
    assert sum(column(features, "merchant_known_fraud_30d")) > 0


def two(**columns: object) -> pd.DataFrame:
    frame = pd.DataFrame(
        {
            "transaction_id": ["a", "b"],
            "event_time": [START, after(2)],
            "card_id": ["c", "c"],
            "merchant_id": ["m", "m"],
            "amount_minor": [1_000, 3_000],
            "fraud": [True, False],
        }
    )
    return frame.assign(**columns)


@pytest.mark.parametrize(("delay_s", "known"), [(2 * 86_400.0, 1), (2 * 86_400.0 + 1e-6, 0), (0.0, 1), (None, 0)])
def test_a_label_is_known_after_its_delay_and_not_before(delay_s: float | None, known: int) -> None:
    assert column(compute_features(two(), label_delay_s=delay_s), "merchant_known_fraud_30d") == [0, known]


def test_other_time_zones_are_the_same_instants() -> None:
    frame = history(2)
    elsewhere = frame.assign(event_time=frame["event_time"].dt.tz_convert("Asia/Kolkata"))
    np.testing.assert_array_equal(compute_features(frame), compute_features(elsewhere))


@pytest.mark.parametrize("unit", ["s", "ms", "ns"])
def test_times_of_any_resolution_are_microseconds(unit: str) -> None:
    def found(times: list[datetime]) -> list[int]:
        frame = two(event_time=pd.Series(times).dt.as_unit(unit))
        return history_of(frame, LabelRegime()).training_set().event_time_us.tolist()

    assert found([START, after(1)]) == [microseconds(START), microseconds(after(1))]


def test_a_history_out_of_order_is_put_in_order() -> None:
    found = history_of(two().iloc[::-1], LabelRegime())
    assert found.number.tolist() == [1, 0]
    np.testing.assert_array_equal(found.training_set().features, compute_features(two()))
