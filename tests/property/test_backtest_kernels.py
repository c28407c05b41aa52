"""Whatever the history, its cut and the rules: a replay over columns decides, learns and refuses as the kernels do."""

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.backtest import Learning
from pipeline.engine.feedback import FeedbackOptions
from pipeline.engine.models import ActiveModels
from pipeline.scoring.river_factory import first_river
from tests.helpers.histories import DAY, HOUR, busy_history, play
from tests.helpers.live import Live
from tests.unit.test_backtest import assert_same, models, options, run, told

horizons_us = st.sampled_from((0, HOUR, DAY, 3 * DAY, 10 * DAY, 40 * DAY))


@settings(deadline=None, max_examples=12)
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
    given_ = models()
    start = ActiveModels(given_.lightgbm, first_river(given_.lightgbm.version), given_.policy)
    feedback = FeedbackOptions(card.future_tolerance_us, label, maturity, rate, partitions)
    live = play(history, Live(start, card, feedback), every_us)
    parts = run(history, card, rows, scored_by=start, learning=Learning(feedback, every_us))
    if live.decisions:
        assert_same(parts, live)
    assert sum(map(len, parts)) == len(live.decisions)
    assert told(parts) == sorted(live.dead_letters)
