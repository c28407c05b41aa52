"""Label regimes: who is reported, and when."""

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.engine.history import labels_known
from pipeline.features.catalogue import US_PER_DAY
from pipeline.learning.regimes import NEVER_US, LabelRegime

N = 40_000
TIMES = np.arange(N, dtype=np.int64) * 1_000_000
FRAUD = np.arange(N) % 2 == 0
IDENTITY = np.random.default_rng(1).integers(0, 2**63, N).astype(np.uint64)


def known(regime: LabelRegime) -> NDArray[np.int64]:
    return regime.known_at_us(TIMES, FRAUD, IDENTITY)


def test_all_labels_come_after_one_delay() -> None:
    np.testing.assert_array_equal(known(LabelRegime(delay_days=2.0)), TIMES + 2 * US_PER_DAY)


def test_nobody_reports_a_legitimate_one() -> None:
    times = known(LabelRegime(reported="frauds-only", delay_days=2.0))
    np.testing.assert_array_equal(times[FRAUD], TIMES[FRAUD] + 2 * US_PER_DAY)
    assert (times[~FRAUD] == NEVER_US).all()
    labels = labels_known(times, FRAUD)
    assert labels.known.all()
    assert len(labels.row) == FRAUD.sum()


def test_delays_and_what_is_never_reported_follow_the_distribution() -> None:
    regime = LabelRegime(reported="frauds-only", delay_days=3.0, delay_spread=0.66, never_reported=0.1)
    times = known(regime)
    np.testing.assert_array_equal(times, known(regime))
    for age_days in (0.5, 3.0, regime.maturity_days, 20.0):
        came = (times[FRAUD] < NEVER_US) & (times[FRAUD] - TIMES[FRAUD] <= age_days * US_PER_DAY)
        assert came.mean() == pytest.approx(regime.share_reported(np.array([age_days]))[0], abs=0.01)
    assert regime.maturity_days == pytest.approx(7.0, abs=0.02)
    assert (times[FRAUD] == NEVER_US).mean() == pytest.approx(0.1, abs=0.01)


def test_a_fixed_delay_is_a_step() -> None:
    regime = LabelRegime(delay_days=7.0, never_reported=0.2)
    assert regime.share_reported(np.array([6.9, 7.0])).tolist() == [0.0, 0.8]
    assert regime.maturity_days == 7.0


@pytest.mark.parametrize("changes", [{"delay_days": -1.0}, {"delay_spread": 6.0}, {"never_reported": 1.0}])
def test_numbers_out_of_range_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="a label regime has"):
        LabelRegime(**changes)  # type: ignore[arg-type]


def test_labels_are_in_the_order_in_which_they_became_known() -> None:
    labels = labels_known(np.array([30, NEVER_US, 10, 10]), np.array([True, True, False, True]))
    assert labels.row.tolist() == [2, 3, 0]
    assert labels.known.tolist() == [0, 1, 1]
    assert labels.known_at_us.tolist() == [10, 10, 30]
