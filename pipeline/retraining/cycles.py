"""The service's history, as `control` has it: after a restart it reads the same records again."""

from typing import Any, Final, NamedTuple

from pipeline.models.history import PROGRAM, PROMOTE, ROLLBACK, VersionHistory
from schemas.messages import Assessment, LearningSwitch

SERVICE: Final = "retrain"
"""The service's name, also among figures."""
BY: Final = f"{PROGRAM}{SERVICE}"
"""The writer of the service's records."""
AS_OF: Final = "as_of_us"
"""The figure that says up to which event time a cycle had read."""


class Cycles(NamedTuple):
    """Event times in microseconds since 1970; None where there was no such cycle."""

    last_us: int | None = None
    """Time up to which the last cycle of the service had read."""
    rollback_us: int | None = None
    """The same as of the last rollback, whoever made it."""


def cycles_of(history: VersionHistory) -> Cycles:
    """Return the last cycle of the service, and the last rollback."""
    found = Cycles()
    for event in history.events:
        if isinstance(event, LearningSwitch):
            continue
        if event.by == BY and (isinstance(event, Assessment) or event.step in (PROMOTE, ROLLBACK)):
            found = found._replace(last_us=_read_until(event.figures, found.last_us))
        if not isinstance(event, Assessment) and event.step == ROLLBACK:
            # A person's too: the same recipe would bring back what was rolled back.
            found = found._replace(rollback_us=found.last_us)
    return found


def _read_until(figures: dict[str, Any], before_us: int | None) -> int | None:
    as_of_us = figures.get(AS_OF)
    return as_of_us if isinstance(as_of_us, int) else before_us
