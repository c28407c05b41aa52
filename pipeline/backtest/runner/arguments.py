"""Arguments of a backtest that belong together."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from pipeline.backtest.labels.schedule import LabelMode
from pipeline.learning.regimes import LabelRegime


@dataclass(frozen=True, slots=True)
class TimeRange:
    """The event times to decide, and the history to read before them."""

    start: datetime | None = None
    """First event time (UTC without an offset). Default: the first of the history."""
    end: datetime | None = None
    """Event time to end before. Default: the end of the history."""
    warm_up_s: float | None = None
    """History before the start that enters the windows. Default: all that features depend on and the labels' delay; in
    the recorded order all that a restore of state reads."""
    validation_days: float = 7.0
    """Days before the start on which thresholds for budgets are chosen, and the last days of a training, which stop it
    and set its threshold."""
    lateness_s: float | None = None
    """Longest time from an event to its record on a topic. Default: `pipeline.features.catalogue.LATENESS_US`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """Scores from which on variants of each model alert; without any of these, as its policy says."""

    fixed: Iterable[float] = ()
    """Scores, each of which makes a variant of every model."""
    budgets: Iterable[float] = ()
    """Alerts a day, each of which makes a variant, whose threshold is chosen on the validation days."""
    pace: float | None = None
    """Alerts a day of one more variant, whose threshold `pipeline.decision.pacing.Pacing` sets anew each hour."""
    critical: float | None = None
    """Scores from here on alert whatever the budget of ``pace`` says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineModel:
    """The online model beside each LightGBM model."""

    version: str | None = None
    """``latest``, ``untrained`` or a version. Default: ``latest``, or ``untrained`` with ``learn``."""
    learn: bool = False
    """Let it learn from there on. Reported frauds then decide with each version whether it takes part in the score
    (`pipeline.decision.online_gate.Gate`)."""
    publish_every_s: float = 3_600.0
    """Event time between two versions of a model that learns."""
    blend: float | None = None
    """Weight in the score, 0 to 1, in place of the policy's and the gate's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelPolicy:
    """The labels of a backtest: recorded ones, or ones that follow from the truth about each transaction."""

    mode: LabelMode | str | None = None
    """Default: ``delay`` for a file with a column for the truth and no label file, else ``recorded``."""
    file: Path | None = None
    """Labels of a file's transactions."""
    regime: LabelRegime = field(default_factory=LabelRegime)
    """Transactions that get labels which are not recorded, and their delays."""
    review_delay_s: float = 86_400.0
    """Time from a transaction to the answer of a simulated review of its alert."""
    reviews_a_day: int = 100
    """Alerts that simulated reviews answer, of each variant and day (UTC)."""
