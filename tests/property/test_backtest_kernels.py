"""Whatever the history, its cut and the rules: a replay over columns decides, learns and refuses as the kernels do."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from schemas.messages import FeedbackConfig
from tests.helpers.histories import DAY, HOUR, busy_history
from tests.unit.backtest.test_backtest import assert_taught, options

horizons_us = st.sampled_from((0, HOUR, DAY, 3 * DAY, 10 * DAY, 40 * DAY))


@example(  # A transaction is decided again, at its old time, when the first decision has matured.
    seed=0, size=106, rows=20, partitions=1, dedup=0, label=0, maturity=DAY, rate=1.0, every_us=HOUR
)  # fmt: skip
@settings(max_examples=12)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(1, 250),
    rows=st.sampled_from((1, 3, 20, None)),
    partitions=st.sampled_from((1, 2, 5)),
    dedup=horizons_us,
    label=horizons_us,
    maturity=horizons_us,
    rate=st.sampled_from((0.05, 0.5, 1.0)),
    every_us=st.sampled_from((HOUR, DAY, 5 * DAY)),
)
def test_it_is_what_the_live_kernels_do(
    seed: int, size: int, rows: int | None, partitions: int, dedup: int, label: int, maturity: int, rate: float,
    every_us: int,
) -> None:  # fmt: skip
    history, card = busy_history(seed, size), options(partitions, dedup, label)
    feedback = FeedbackConfig(label_horizon_us=label, maturity_us=maturity, negative_sample_rate=rate)
    assert_taught(history, card, feedback, every_us, rows)
