"""Thresholds, and budgets for which thresholds are chosen or paced: each makes a variant of every model."""

from collections import Counter
from typing import Final, NamedTuple

from pipeline.backtest.runner.arguments import Thresholds
from pipeline.decision.pacing import PacingOptions

BUDGET: Final = "alerts a day"
"""Parameter of a variant whose threshold was chosen for a budget."""


class AlertThreshold(NamedTuple):
    """The threshold of a variant; without one, its policy's."""

    threshold: float | None = None
    budget: float | None = None
    """Alerts a day, for which one threshold is chosen before the range."""
    pace: PacingOptions | None = None
    """Budget for which the threshold is set anew each hour."""

    @property
    def suffix(self) -> str:
        """Return the part of a variant's name that tells it from others of its model.

        >>> AlertThreshold(threshold=0.5).suffix, AlertThreshold(budget=20.0).suffix, AlertThreshold().suffix
        (' at 0.5', ' at 20 a day', '')
        >>> AlertThreshold(pace=PacingOptions(20.0)).suffix
        ' paced at 20 a day'
        """
        if self.threshold is not None:
            return f" at {_digits(self.threshold)}"
        if self.pace is not None:
            return f" paced at {_digits(self.pace.alerts_per_day)} a day"
        return "" if self.budget is None else f" at {_digits(self.budget)} a day"


def parsed_thresholds(asked: Thresholds) -> tuple[AlertThreshold, ...]:
    """Return the threshold of each variant of a model, of which there is at least one.

    Raises:
        ValueError: A number is named twice, or a critical score has no pace.
    """
    thresholds, budgets = tuple(asked.fixed), tuple(asked.budgets)
    pace, critical = asked.pace, asked.critical
    if critical is not None and pace is None:
        raise ValueError("a critical score belongs to a pace, whose budget it may exceed: add --pace")
    for kind, values in (("threshold", thresholds), ("budget", budgets)):
        if twice := [value for value, count in Counter(values).items() if count > 1]:
            raise ValueError(f"the {kind} {_digits(twice[0])} is named twice: name it once")
    named = (
        *(AlertThreshold(threshold=value) for value in thresholds),
        *(AlertThreshold(budget=value) for value in budgets),
        *(() if pace is None else (AlertThreshold(pace=PacingOptions(pace, critical)),)),
    )
    return named or (AlertThreshold(),)


def _digits(value: float) -> str:
    """Write a number as short as it can be told from every other one."""
    return text if float(text := f"{value:g}") == value else repr(float(value))
