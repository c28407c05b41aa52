"""The gate of the online model: reported frauds alone take it out of the score, and let it back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.decision.online_gate import (
    REACH_DAYS,
    REPORT_DAYS,
    TOP,
    BothScores,
    Gate,
    Identity,
    LabelReport,
    decide_blend,
)
from pipeline.learning.labels import KNOWN, source_rank
from schemas.times import US_PER_DAY

START_US = 20_000 * US_PER_DAY
FRAUD, LEGITIMATE = KNOWN.index("fraud"), KNOWN.index("legitimate")


def day(number: int, seed: int, rows: int = 400) -> BothScores:
    random = np.random.default_rng([seed, number])
    names: list[Identity] = [(f"c{row}", f"t{number}-{row}") for row in range(rows)]
    times_us = START_US + number * US_PER_DAY + random.integers(0, US_PER_DAY, rows)
    # Few values, so that there are ties at the edge of the highest.
    scores = [random.integers(0, 40, rows) / 40.0 for _ in range(2)]
    return BothScores(times_us, *scores, names)


def highest(score: np.ndarray, names: list[Identity]) -> set[Identity]:
    return {name for _, name in sorted(zip((-score).tolist(), names, strict=True))[:TOP]}


def report(name: Identity, known_us: int, known: int = FRAUD, source: str = "customer", at_us: int = 0) -> LabelReport:
    return LabelReport(name, source_rank(source), known, at_us or known_us, known_us)


@settings(max_examples=15)
@given(st.data())
def test_reported_frauds_in_one_top_alone_are_counted_however_rows_are_cut(data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 100))
    days = [day(number, seed) for number in range(3)]
    frauds = set(
        data.draw(st.lists(st.sampled_from([name for day in days for name in day.identity]), min_size=40, max_size=80))
    )
    won = lost = 0
    for scores in days:
        blend, lightgbm = (highest(score, list(scores.identity)) for score in (scores.blend, scores.lightgbm))
        won, lost = won + len((blend - lightgbm) & frauds), lost + len((lightgbm - blend) & frauds)
    gate = Gate()
    size = data.draw(st.sampled_from((1, 60, 250, 500)))
    for scores in days:
        order = np.random.default_rng(seed).permutation(len(scores.blend))
        for at in range(0, len(order), size):
            rows = order[at : at + size]
            names = [scores.identity[row] for row in rows.tolist()]
            gate.add(BothScores(scores.event_time_us[rows], scores.blend[rows], scores.lightgbm[rows], names))
    for name in frauds:
        gate.report(report(name, START_US + 3 * US_PER_DAY))
    found = gate.decide(0.5)
    assert (found.won, found.lost) == (won, lost)
    assert found.z == pytest.approx((won - lost) / max(won + lost, 1) ** 0.5)


def test_the_online_model_goes_out_by_its_losses_and_comes_back_by_clear_wins() -> None:
    models = day(0, seed=1)
    names = list(models.identity)
    blend, lightgbm = highest(models.blend, names), highest(models.lightgbm, names)
    wins, losses = sorted(blend - lightgbm), sorted(lightgbm - blend)
    gate = Gate()
    gate.add(models)
    assert gate.decide(1.0).blend == 1.0
    gate.report(report(losses[0], START_US))
    assert gate.decide(1.0).blend == 0.0
    # As many wins as losses are no reason to let it back.
    gate.report(report(wins[0], START_US))
    assert (gate.decide(0.0).blend, gate.decide(1.0).blend) == (0.0, 1.0)
    for name in wins[1:6]:
        gate.report(report(name, START_US))
    found = gate.decide(0.0)
    assert (found.won, found.lost, found.blend) == (6, 1, 1.0)
    # A report that is taken back counts no more; a weaker source takes nothing back.
    for name in wins[1:6]:
        gate.report(report(name, START_US + 2, LEGITIMATE, "some system"))
    assert gate.decide(0.0).won == 6
    for name in wins[:6]:
        gate.report(report(name, START_US + 1, LEGITIMATE, "analyst"))
    assert gate.decide(1.0)[:3] == (0.0, 0, 1)


def test_reports_of_a_week_count_about_transactions_of_a_fortnight() -> None:
    first = day(0, seed=1)
    names = list(first.identity)
    lost = sorted(highest(first.lightgbm, names) - highest(first.blend, names))[0]

    def counted(days_later: int, reported: float) -> int:
        gate = Gate()
        gate.add(first)
        gate.add(day(days_later, seed=1))
        gate.report(report(lost, START_US + round(reported * US_PER_DAY)))
        return gate.decide(1.0).lost

    assert counted(8, 8.0) == 1
    assert counted(REACH_DAYS - 1, REACH_DAYS - 1.0) == 1
    assert counted(REACH_DAYS, REACH_DAYS - 1.0) == 0
    assert counted(8 + REPORT_DAYS - 1, 5.0) == 0


def test_legitimate_labels_alone_are_not_kept() -> None:
    gate = Gate()
    gate.add(day(0, seed=1))
    for name in day(0, seed=1).identity:
        gate.report(report(name, START_US, LEGITIMATE))
    assert not gate._held
    assert gate.decide(1.0) == decide_blend(0, 0, 1.0)
