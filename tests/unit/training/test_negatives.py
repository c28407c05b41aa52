"""Sampling rates of legitimate transactions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.training.negatives import EVEN_SHARE, sampling_rates


@given(
    scores=st.lists(st.floats(1e-9, 1.0), min_size=2, max_size=50),
    share=st.floats(0.01, 0.99),
)
def test_rates_add_up_and_follow_the_scores(scores: list[float], share: float) -> None:
    score, rows = np.array(scores), share * (len(scores) - 1)
    rate = sampling_rates(score, rows)
    assert rate.sum() == pytest.approx(rows)
    assert rate.max() <= 1.0
    assert rate.min() >= EVEN_SHARE * rows / len(score) * (1 - 1e-9)
    order = np.argsort(score)
    assert (np.diff(rate[order]) >= 0).all()
    partly = rate < 1.0
    more = (rate - EVEN_SHARE * rows / len(score))[partly] / score[partly]
    np.testing.assert_allclose(more, more[:1].repeat(len(more)), rtol=1e-6)


def test_equal_scores_are_sampled_alike() -> None:
    np.testing.assert_allclose(sampling_rates(np.full(10, 0.2), 4.0), 0.4)
