"""Outcomes of the newest alerts."""

from pipeline.monitoring.alert_outcomes import WINDOW_DAYS, AlertFigures, AlertOutcomes
from schemas.times import US_PER_DAY


def key(number: int) -> tuple[str, str]:
    return "c1", f"t{number}"


def test_precision_goes_by_the_weights_of_examples_and_money_by_frauds() -> None:
    outcomes = AlertOutcomes()
    assert outcomes.figures() == AlertFigures(None, 0, 0)
    for number in range(4):
        outcomes.add_alert(key(number), 0)
    assert outcomes.figures() == AlertFigures(None, 0, 0)
    outcomes.add_example(key(0), 0, "fraud", 40.0, 1.0)
    outcomes.add_example(key(1), 0, "presumed_legitimate", 7.0, 2.0)
    outcomes.add_example(key(2), 0, "legitimate", 9.0, 1.0)
    outcomes.add_example(key(8), 0, "legitimate", 9.0, 1.0)
    outcomes.add_example(key(9), 0, "fraud", 60.0, 1.0)
    for _ in range(2):
        assert outcomes.figures() == AlertFigures(0.25, 40.0, 60.0)


def test_a_correction_takes_the_place_of_what_was_said_before() -> None:
    outcomes = AlertOutcomes()
    for number in range(2):
        outcomes.add_alert(key(number), 0)
        outcomes.add_example(key(number), 0, "fraud", 40.0, 1.0)
    outcomes.add_example(key(1), 0, "legitimate", 40.0, 1.0)
    assert outcomes.figures() == AlertFigures(0.5, 40.0, 0)
    outcomes.add_example(key(0), 0, "withdrawn", 40.0, 1.0)
    assert outcomes.figures() == AlertFigures(0.0, 0, 0)


def test_figures_are_of_the_newest_days() -> None:
    outcomes = AlertOutcomes()
    for number in range(2):
        outcomes.add_alert(key(number), number)
        outcomes.add_example(key(number), number, "fraud", 40.0, 1.0)
    outcomes.add_alert(key(2), WINDOW_DAYS * US_PER_DAY + 1)
    assert outcomes.figures() == AlertFigures(1.0, 40.0, 0)
