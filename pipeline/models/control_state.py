"""The state of ``control`` for a program that sets policies: active versions, the last pace, a freeze."""

from collections.abc import Callable, Sequence

from pipeline.decision.policy import Policy
from pipeline.engine.models import ActiveModels
from pipeline.kafka.follower import TopicFollower
from pipeline.kafka.internal import TrustedRecords, not_counted
from pipeline.kafka.quarantine import decode_control
from pipeline.models.activation import Activations
from pipeline.models.contents import VersionContents
from pipeline.models.history import PACE
from pipeline.models.library import board_without_river
from pipeline.settings import Settings
from schemas.messages import Activation, LearningSwitch, VersionReference
from schemas.records import Record
from schemas.topics import CONTROL


class ControlState:
    """Follows ``control``; used from one thread.

    Args:
        bootstrap: Addresses of brokers.
        settings: Give the topics' full names and the client's configuration.
        waiting: Called while no broker answers; may raise.
    """

    def __init__(self, bootstrap: str, settings: Settings, waiting: Callable[[], None]) -> None:
        self._waiting = waiting
        self._follower = TopicFollower(bootstrap, settings, CONTROL)
        self._trusted = TrustedRecords(settings, not_counted)
        self._contents = VersionContents(bootstrap, settings)
        self._activations = Activations(not_counted)
        self._board = board_without_river()
        self._with_lightgbm: dict[str, VersionReference] = {}
        """Policy that became active with a LightGBM version, by the version's digest."""
        self._started = False
        self.frozen = False
        """True while programs may not activate anything."""
        self.paced_by: str | None = None
        """Identity of the pace that activated last; None without one."""

    @property
    def active(self) -> ActiveModels | None:
        """The active versions, with an untrained online model."""
        return self._board.active

    def refresh(self) -> None:
        """Take in all that was committed before this call."""
        if not self._started:
            self._follower.start()
            self._started = True
        self._take(self._follower.read_committed(self._waiting))

    def look(self) -> None:
        """Take in what has come, without asking for more; behind `refresh`."""
        self._take(self._follower.poll(0))

    def close(self) -> None:
        """Stop following."""
        self._follower.close()

    def first_policy(self) -> Policy | None:
        """Return the policy that became active together with the LightGBM version; None if it cannot be read."""
        active = self.active
        references = () if active is None else self._with_lightgbm.items()
        for digest, reference in references:
            if active is not None and digest.startswith(active.lightgbm.version):
                content = self._contents.find(reference, self._waiting)
                return None if content is None else Policy.from_payload(bytes(content.payload))
        return None

    def _take(self, records: Sequence[Record]) -> None:
        for _, item in self._trusted.readable(records, decode_control):
            if isinstance(item, LearningSwitch):
                self.frozen = item.frozen
            elif isinstance(item, Activation):
                self._activations.add(item)
                named = {reference.name: reference for reference in item.versions}
                if {"lightgbm", "policy"} <= named.keys():
                    self._with_lightgbm[named["lightgbm"].digest] = named["policy"]
                if item.step == PACE:
                    self.paced_by = str(item.figures.get(PACE, ""))
        if self._activations.awaited:
            self._board = self._activations.apply(
                self._board, lambda reference: self._contents.find(reference, self._waiting)
            )
