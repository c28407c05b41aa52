"""The current state of a run; the controller writes it, the view reads it."""

from dataclasses import dataclass, field
from datetime import datetime

from pipeline.demo.figures import RunFigures


@dataclass(slots=True)
class RunState:
    """The present stage and the figures. ``started_s`` and all other seconds are of one monotonic clock."""

    started_s: float
    stage: str = "starting"
    """The current step or wait, in words for a newcomer."""
    days: int = 0
    """Simulated days to stream; 0 for a run without end."""
    day: int = 0
    """The day that is streaming, from 1; 0 before."""
    day_share: float = 0.0
    """Share of that day's transactions that have been sent."""
    simulated: datetime | None = None
    """Event time of the newest transaction sent."""
    transactions_per_s: float = 0.0
    workers: int = 0
    """Worker processes that run."""
    topic_prefix: str = ""
    figures: RunFigures = field(default_factory=RunFigures)

    @property
    def share(self) -> float | None:
        """Share of all days that has been streamed; None in a run without end or before the first day."""
        if self.days == 0 or self.day == 0:
            return None
        return min(1.0, (self.day - 1 + self.day_share) / self.days)
