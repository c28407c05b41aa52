"""Holds what was measured to ``bounds.toml``: ratios within one run, each with a goal and a limit."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final, Literal

FILE: Final = Path(__file__).with_name("bounds.toml")

Step = str | Mapping[str, Any]


class Verdict(Enum):
    """What came of a bound, as it is shown."""

    MET = "goal met"
    KEPT = "kept"
    """Between limit and goal."""
    MISSED = "goal missed"
    """A bound without a limit."""
    FAILED = "FAILED"
    UNMEASURED = "not measured"


class Unanswered(ValueError):
    """A run was measured and has no value where it must have one: a pipeline that did not keep up, for instance."""


@dataclass(frozen=True)
class Bound:
    """One line of ``bounds.toml``."""

    name: str
    value: tuple[Step, ...]
    better: Literal["higher", "lower"]
    goal: float
    over: tuple[Step, ...] | None = None
    """None: not a ratio."""
    limit: float | None = None
    """None: only shown."""

    def reaches(self, value: float, wanted: float) -> bool:
        """Whether ``value`` is as good as ``wanted``, or better."""
        return value >= wanted if self.better == "higher" else value <= wanted


@dataclass(frozen=True)
class Outcome:
    """A bound, and what a run gives for it."""

    bound: Bound
    verdict: Verdict
    value: float | None

    @property
    def message(self) -> str:
        """What failed, and by how much; for a bound that has."""
        bound = self.bound
        if self.value is None:
            return f"{bound.name}: the run has no such value; look at what it says of this part"
        assert bound.limit is not None
        off, side = abs(self.value / bound.limit - 1), "below" if bound.better == "higher" else "above"
        return f"{bound.name}: {self.value:.3g}, which is {off:.0%} {side} the limit of {bound.limit:g}"


def read_bounds(path: Path = FILE) -> list[Bound]:
    """The bounds of a file. ValueError for one that would mean something else on another machine, or in another run."""
    found = []
    for entry in tomllib.loads(path.read_text(encoding="utf-8"))["bound"]:
        over = entry.pop("over", None)
        bound = Bound(**{**entry, "value": tuple(entry["value"])}, over=None if over is None else tuple(over))
        if bound.better not in ("higher", "lower"):
            raise ValueError(f"{bound.name}: better is {bound.better!r}; write higher or lower")
        if bound.limit is not None:
            if bound.over is None:
                raise ValueError(f"{bound.name}: only a ratio may have a limit, as times differ between machines")
            if bound.over[0] != bound.value[0]:
                raise ValueError(f"{bound.name}: both values of a ratio must come from one part, that is one run")
            if not bound.reaches(bound.goal, bound.limit):
                raise ValueError(f"{bound.name}: the goal {bound.goal:g} is worse than the limit {bound.limit:g}")
        found.append(bound)
    return found


def check(measured: Mapping[str, Any], bounds: Sequence[Bound]) -> list[Outcome]:
    """What ``measured`` (the content of ``build/bench.json``) gives for each bound."""
    return [_outcome(measured, bound) for bound in bounds]


def failures(outcomes: Sequence[Outcome]) -> list[str]:
    """A message for each bound that failed."""
    return [outcome.message for outcome in outcomes if outcome.verdict is Verdict.FAILED]


def _outcome(measured: Mapping[str, Any], bound: Bound) -> Outcome:
    try:
        value = _found(measured, bound.value)
        if bound.over is not None and value is not None:
            divisor = _found(measured, bound.over)
            value = None if divisor is None else value / divisor
    except Unanswered:
        return Outcome(bound, Verdict.MISSED if bound.limit is None else Verdict.FAILED, None)
    if value is None:
        return Outcome(bound, Verdict.UNMEASURED, None)
    if bound.reaches(value, bound.goal):
        return Outcome(bound, Verdict.MET, value)
    if bound.limit is None:
        return Outcome(bound, Verdict.MISSED, value)
    return Outcome(bound, Verdict.KEPT if bound.reaches(value, bound.limit) else Verdict.FAILED, value)


def _found(content: Any, path: Sequence[Step]) -> float | None:
    """The number at ``path``; None where the run left that out, `Unanswered` where it has null there."""
    for step in path:
        if content is None:
            raise Unanswered(str(path))
        if isinstance(step, str):
            if step not in content:
                return None
            content = content[step]
        else:
            content = next((row for row in content if all(row.get(name) == step[name] for name in step)), None)
            if content is None:
                return None
    if content is None:
        raise Unanswered(str(path))
    return float(content)
