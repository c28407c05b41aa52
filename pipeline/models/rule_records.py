"""Figures about rules in activations and assessments on `control`."""

import logging
from datetime import datetime
from typing import Annotated, Final, TypeVar

import msgspec

from schemas.messages import Activation, Assessment

log = logging.getLogger(__name__)

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class RuleStep(msgspec.Struct, frozen=True, omit_defaults=True):
    """A step of a rule from one state to another."""

    code: str
    before: str | None
    """None for a new rule."""
    after: str
    tests: _Count | None = None
    """Number of tests of its code on history; None for a rule that was retired."""
    looks: _Count = 0
    """Number of looks at the newest days, which tests leave out."""
    tested: bool = False


class RuleTrip(msgspec.Struct, frozen=True):
    """The counts by which the breaker stopped a rule."""

    code: str
    event_hour: _Count
    """Hours since 1970, in event time."""
    hits: _Count
    alerts: _Count
    transactions: _Count


class RuleFigures(msgspec.Struct, frozen=True, omit_defaults=True):
    """The figures of an activation, of any step, that are about rules."""

    rules: list[RuleStep] = []
    trips: list[RuleTrip] = []


class RuleTest(msgspec.Struct, frozen=True, omit_defaults=True):
    """The figures of an assessment of a rule on history."""

    rule: str
    """Its code."""
    expression: str
    days: _Count
    history: str
    """Name of the history."""
    held_out: bool = False
    """True for a look at the newest days, which tests leave out."""


F = TypeVar("F", bound=msgspec.Struct)
_reported: Final = set[tuple[type, str, datetime]]()
"""Records whose figures cannot be read, and that were reported."""


def rule_figures(activation: Activation) -> RuleFigures:
    """Return the figures of an activation about rules; none where they cannot be read."""
    return _read(activation, RuleFigures, activation.activated_at) or RuleFigures()


def rule_test(assessment: Assessment) -> RuleTest | None:
    """Return the figures of an assessment of a rule; None where they cannot be read."""
    return _read(assessment, RuleTest, assessment.assessed_at)


def _read(event: Activation | Assessment, kind: type[F], at: datetime) -> F | None:
    try:
        return msgspec.convert(event.figures, kind)
    except msgspec.ValidationError as error:
        if (record := (type(event), event.by, at)) not in _reported:
            _reported.add(record)
            log.error(
                "the record by %s of %s on control has figures about rules that cannot be read, and counts as one "
                "without: %s",
                event.by, at.isoformat(), error,
            )  # fmt: skip
        return None
