"""The past as ``control`` has it: which versions served when, what the service did, whether learning is frozen.

The service keeps no state of its own: after a restart it reads the same records again.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final, NamedTuple

from pipeline.kafka.internal import TrustedRecords, not_counted
from pipeline.kafka.quarantine import QuarantinedRecords, decode_control
from pipeline.models.history import BUNDLED, PROGRAM, PROMOTE, ROLLBACK
from pipeline.settings import Settings
from schemas.messages import Activation, Assessment, LearningSwitch, Quarantine, VersionReference
from schemas.records import Record

BY: Final = f"{PROGRAM}retrain"
"""The writer of the service's records."""
AS_OF: Final = "as_of_us"
"""The figure that says up to which event time a cycle had read."""
_LIGHTGBM, _POLICY = BUNDLED


class Tenure(NamedTuple):
    """A LightGBM version from its activation to the next one's, with the last policy beside it."""

    lightgbm: VersionReference
    policy: VersionReference | None
    activated_ms: int
    """Wall-clock time of the activation, in milliseconds since 1970."""
    step: str
    given: VersionReference | None = None
    """The policy that became active with it."""

    @property
    def references(self) -> list[VersionReference]:
        """Both versions."""
        return [self.lightgbm] if self.policy is None else [self.lightgbm, self.policy]


class ControlLog:
    """The records of ``control`` in their order.

    Args:
        settings: Give topics' full names.
    """

    def __init__(self, settings: Settings) -> None:
        self._trusted = TrustedRecords(settings, not_counted)
        self.quarantined = QuarantinedRecords(settings)
        self.tenures: list[Tenure] = []
        """Oldest first; two that follow each other are of different versions."""
        self.frozen: LearningSwitch | None = None
        """The switch that stops learning; None while models learn."""
        self.activations = 0
        """Number of activations that change LightGBM or policy."""
        self.cycle_us: int | None = None
        """Event time up to which the last cycle of the service had read; None before the first one."""
        self.rollback_us: int | None = None
        """The same as of the last rollback, whoever made it."""
        self._policy: VersionReference | None = None

    def add(self, records: Iterable[Record]) -> None:
        """Take in records that follow all others."""
        for _, item in self._trusted.readable(records, decode_control):
            if isinstance(item, Activation):
                self._activated(item)
            elif isinstance(item, LearningSwitch):
                self.frozen = item if item.frozen else None
            elif isinstance(item, Quarantine):
                self.quarantined.add(item)
            elif isinstance(item, Assessment) and item.by == BY:
                self._cycle_ended(item.figures)

    def _activated(self, item: Activation) -> None:
        named = {reference.name: reference for reference in item.versions}
        if not {_LIGHTGBM, _POLICY} & named.keys():
            return
        self.activations += 1
        self._policy = named.get(_POLICY, self._policy)
        last = self.tenures[-1] if self.tenures else None
        lightgbm = named.get(_LIGHTGBM)
        if lightgbm is not None and (last is None or lightgbm.digest != last.lightgbm.digest):
            given = named.get(_POLICY)
            self.tenures.append(Tenure(lightgbm, self._policy, _milliseconds(item.activated_at), item.step, given))
        elif last is not None:
            self.tenures[-1] = last._replace(policy=self._policy)
        if item.by == BY and item.step in (PROMOTE, ROLLBACK):
            self._cycle_ended(item.figures)
        if item.step == ROLLBACK:
            # A person's too: the same recipe would bring back what was rolled back.
            self.rollback_us = self.cycle_us

    def _cycle_ended(self, figures: dict[str, Any]) -> None:
        as_of_us = figures.get(AS_OF)
        if isinstance(as_of_us, int):
            self.cycle_us = as_of_us


def _milliseconds(at: datetime) -> int:
    return round(at.timestamp() * 1_000)
