"""Label regimes: who is reported, and when."""

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.learning.regimes import NEVER_US, LabelRegime
from schemas.times import US_PER_DAY

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


def test_delays_and_what_is_never_reported_follow_the_distribution() -> None:
    regime = LabelRegime(reported="frauds-only", delay_days=3.0, delay_spread=0.66, never_reported=0.1)
    times = known(regime)
    np.testing.assert_array_equal(times, known(regime))
    for age_days in (0.5, 3.0, regime.maturity_days, 20.0):
        came = (times[FRAUD] < NEVER_US) & (times[FRAUD] - TIMES[FRAUD] <= age_days * US_PER_DAY)
        assert came.mean() == pytest.approx(regime.share_reported(np.array([age_days]))[0], abs=0.01)
    assert regime.maturity_days == pytest.approx(7.0, abs=0.02)
    assert (times[FRAUD] == NEVER_US).mean() == pytest.approx(0.1, abs=0.01)


def test_days_may_be_whole_numbers() -> None:
    whole = LabelRegime(delay_days=3, delay_spread=0.66, early_share=0.3)
    np.testing.assert_array_equal(known(whole), known(msgspec.structs.replace(whole, delay_days=3.0)))


def test_a_fixed_delay_is_a_step() -> None:
    regime = LabelRegime(delay_days=7.0, never_reported=0.2)
    assert regime.share_reported(np.array([6.9, 7.0])).tolist() == [0.0, 0.8]
    assert regime.maturity_days == 7.0


@pytest.mark.parametrize(
    "regime",
    [
        LabelRegime(reported="frauds-only", early_share=0.3, never_reported=0.2),
        LabelRegime(reported="frauds-only", delay_days=5.0, delay_spread=1.0, early_share=0.3, early_hours=12.0),
        LabelRegime(delay_days=0.125, delay_spread=0.5, early_share=0.5, early_hours=24.0),
        LabelRegime(delay_days=0.0, early_share=0.95, early_hours=24.0),
        LabelRegime(early_share=1.0, early_hours=24.0),
    ],
)
def test_a_share_of_the_frauds_is_reported_early(regime: LabelRegime) -> None:
    times = known(regime)
    delays = times[FRAUD] - TIMES[FRAUD]
    for age_days in (0.1, 0.25, 0.5, 1.0, 7.0, regime.maturity_days):
        came = (times[FRAUD] < NEVER_US) & (delays <= age_days * US_PER_DAY)
        assert came.mean() == pytest.approx(regime.share_reported(np.array([age_days]))[0], abs=0.01)
    share = regime.share_reported(np.array([regime.maturity_days]))[0] / (1 - regime.never_reported)
    just_before = regime.share_reported(np.array([regime.maturity_days - 0.001]))[0] / (1 - regime.never_reported)
    assert share >= 0.9 - 1e-9
    assert just_before < 0.9


def test_early_reports_are_of_frauds_and_leave_all_others_as_they_were() -> None:
    late = LabelRegime(delay_days=3.0, delay_spread=0.66, never_reported=0.1)
    times, before = known(msgspec.structs.replace(late, early_share=0.3)), known(late)
    np.testing.assert_array_equal(times[~FRAUD], before[~FRAUD])
    np.testing.assert_array_equal(times == NEVER_US, before == NEVER_US)
    assert (times[FRAUD] != before[FRAUD]).mean() == pytest.approx(0.27, abs=0.01)


def test_a_share_of_the_legitimate_ones_is_labelled_where_labels_are_mixed() -> None:
    times = known(LabelRegime(reported="mixed", delay_days=2.0, legitimate_share=0.25))
    np.testing.assert_array_equal(times[FRAUD], TIMES[FRAUD] + 2 * US_PER_DAY)
    labelled = times[~FRAUD] < NEVER_US
    assert labelled.mean() == pytest.approx(0.25, abs=0.01)
    np.testing.assert_array_equal(times[~FRAUD][labelled], TIMES[~FRAUD][labelled] + 2 * US_PER_DAY)


@pytest.mark.parametrize(
    "changes",
    [
        {"delay_days": -1.0},
        {"delay_spread": 6.0},
        {"never_reported": 1.0},
        {"early_share": 1.1},
        {"early_hours": 0.0},
        {"legitimate_share": -0.1},
        {"corrected_share": 1.5},
        {"correction_days": 0.0},
    ],
)
def test_numbers_out_of_range_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        LabelRegime(**changes)  # type: ignore[arg-type]


def test_a_share_of_the_labels_says_the_opposite_first() -> None:
    regime = LabelRegime(delay_days=2.0, corrected_share=0.25, correction_days=3.0)
    times = known(regime)
    np.testing.assert_array_equal(times, known(LabelRegime(delay_days=2.0)))
    corrected = regime.corrected_at_us(times, IDENTITY)
    wrong = corrected < NEVER_US
    assert wrong.mean() == pytest.approx(0.25, abs=0.01)
    np.testing.assert_array_equal(corrected[wrong], times[wrong] + 3 * US_PER_DAY)


def test_a_label_is_corrected_under_the_same_draw_whatever_the_share() -> None:
    times = known(LabelRegime(delay_days=2.0))
    few, many = (LabelRegime(corrected_share=share).corrected_at_us(times, IDENTITY) < NEVER_US for share in (0.1, 0.3))
    assert (few & ~many).sum() == 0 < few.sum() < many.sum()
