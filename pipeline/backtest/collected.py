"""What of a backtest's decisions is kept for whoever reports it."""

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import pandas as pd

from pipeline.backtest.decisions import Decisions
from pipeline.backtest.labelling import Reviewed
from pipeline.backtest.result import DECISION_COLUMNS, REASON_COLUMNS, Variant

EXPLAINED_AT_MOST: Final = 500
"""Alerts of a variant whose reasons are told, the first of the range; each costs milliseconds."""


@dataclass(slots=True)
class Collected:
    """Decisions of one variant within the range, as far as a report reads them."""

    frames: list[pd.DataFrame] = field(default_factory=list)
    reasons: list[tuple[str, float]] = field(default_factory=list)
    explained: int = 0
    models: dict[str, set[str]] = field(default_factory=dict)
    thresholds: set[float] = field(default_factory=set)
    reviewed: Reviewed | None = None
    """What became of reviews of its alerts, where they were simulated."""

    def add(self, decisions: Decisions) -> None:
        """Keep some decisions."""
        if not len(decisions):
            return
        self.frames.append(decisions.frame()[list(DECISION_COLUMNS)])
        rows = np.flatnonzero(decisions.alert)[: EXPLAINED_AT_MOST - self.explained]
        if len(rows):
            for reasons in decisions.reasons(rows):
                self.reasons += [(reason.code, reason.contribution) for reason in reasons]
            self.explained += len(rows)
        versions = decisions.models.versions(decisions.rates_version)
        for name in versions.__struct_fields__:
            self.models.setdefault(name, set()).add(getattr(versions, name))
        self.thresholds.add(decisions.models.policy.threshold)

    def variant(self, name: str) -> Variant:
        """All of it."""
        return Variant(
            name=name,
            decisions=pd.concat(self.frames, ignore_index=True),
            models={name: _some(versions) for name, versions in self.models.items()},
            threshold=next(iter(self.thresholds)) if len(self.thresholds) == 1 else None,
            reasons=pd.DataFrame(self.reasons, columns=list(REASON_COLUMNS)) if self.reasons else None,
            explained=self.explained,
            reviewed=self.reviewed,
        )


def _some(names: set[str]) -> str:
    """Versions, a few of them by name."""
    shown = sorted(names)
    return ", ".join(shown) if len(shown) <= 3 else f"{len(shown)} versions, {shown[0]} to {shown[-1]}"
