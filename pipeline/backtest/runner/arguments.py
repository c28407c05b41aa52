"""Arguments of a backtest that belong together: names, types, defaults, limits, and what the command's help says.

`pipeline.commands.option_groups` derives options from them: one for each field with a description.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from pipeline.backtest.labels.schedule import LabelMode
from pipeline.decision.budget import LOWEST_THRESHOLD
from pipeline.features.built_in import LATENESS_US
from pipeline.learning.regimes import LabelRegime
from schemas.limits import Limited
from schemas.times import US_PER_SECOND


@dataclass(frozen=True, slots=True)
class TimeRange(Limited):
    """The event times to decide (UTC without an offset), and the history to read before them.

    Raises:
        ValueError: A time is out of range.
    """

    start: Annotated[datetime | None, Meta(description="First event time.", extra={"option": "--from"})] = None
    end: Annotated[datetime | None, Meta(description="Event time to end before.", extra={"option": "--to"})] = None
    warm_up_s: Annotated[
        float | None,
        Meta(
            ge=0,
            description="History before the range that fills the windows.  [default: 60d and the labels' delay; "
            "recorded: what a restore reads]",
            extra={"option": "--warm-up"},
        ),
    ] = None
    validation_days: Annotated[
        float,
        Meta(gt=0, description="Last days to train on, and before the range, on which thresholds are chosen."),
    ] = 7.0
    lateness_s: Annotated[
        float, Meta(ge=0, description="From an event to its record, at most.", extra={"option": "--lateness"})
    ] = LATENESS_US / US_PER_SECOND


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds(Limited):
    """Scores from which on variants of each model alert; without any of these, as its policy says.

    Raises:
        ValueError: A number is out of range.
    """

    fixed: Annotated[
        Sequence[float],
        Meta(ge=0, le=1, description="In place of the policy's; may be repeated.", extra={"option": "--threshold"}),
    ] = ()
    budgets: Annotated[
        Sequence[float],
        Meta(
            gt=0,
            description="Cases a day, for which a threshold is chosen on the days before the range; may be repeated.",
            extra={"option": "--budget"},
        ),
    ] = ()
    pace: Annotated[
        float | None,
        Meta(
            gt=0,
            description="Cases a day, for which a threshold is set anew each hour of event time.",
            extra={"metavar": "ALERTS_PER_DAY"},
        ),
    ] = None
    critical: Annotated[
        float | None,
        Meta(
            ge=LOWEST_THRESHOLD,
            le=1,
            description="Scores from here on alert whatever the budget of --pace says.  [default: none does]",
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineModel(Limited):
    """The online model beside each LightGBM model.

    Raises:
        ValueError: A number is out of range.
    """

    version: Annotated[
        str | None,
        Meta(
            description="Online model: latest, untrained, or a version.  [default: latest; with --learn: untrained]",
            extra={"option": "--river"},
        ),
    ] = None
    learn: Annotated[bool, Meta(description="Let the online model learn from there on.")] = False
    publish_every_s: Annotated[
        float,
        Meta(
            gt=0,
            description="Event time between two versions of an online model that learns.",
            extra={"option": "--publish-every"},
        ),
    ] = 3_600.0
    blend: Annotated[
        float | None,
        Meta(
            ge=0,
            le=1,
            description="Weight of the online model in the score.  [default: the policy's; with --learn, reported "
            "frauds decide]",
        ),
    ] = None
    """In place of the gate's too (`pipeline.decision.online_gate.Gate`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelPolicy(Limited):
    """The labels of a backtest: recorded ones, or ones that follow from the truth about each transaction.

    Raises:
        ValueError: A number is out of range.
    """

    file: Annotated[
        Path | None, Meta(description="Labels of a file's transactions.", extra={"option": "--label-file"})
    ] = None
    mode: Annotated[
        LabelMode | str | None,
        Meta(
            description="How labels come about.  [default: recorded; delay for a file with a column fraud and no label "
            "file]",
            extra={"option": "--labels"},
        ),
    ] = None
    regime: LabelRegime = field(default_factory=LabelRegime)
    """Regime of labels that follow from the truth."""
    review_delay_s: Annotated[
        float,
        Meta(
            ge=0,
            description="From a transaction to what a simulated review of its alert says.",
            extra={"option": "--review-delay"},
        ),
    ] = 86_400.0
    reviews_a_day: Annotated[int, Meta(ge=1)] = 100
    """Alerts that simulated reviews answer, of each variant and day (UTC)."""
