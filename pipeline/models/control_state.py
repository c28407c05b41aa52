"""Following `control` for a program that sets policies: active versions, the last pace, a freeze."""

from collections.abc import Callable

from pipeline.decision.policy import Policy
from pipeline.engine.scores.models import ActiveModels
from pipeline.kafka.readers.follower import TopicFollower
from pipeline.models.contents import VersionContents
from pipeline.models.history import VersionHistory
from pipeline.models.library import PublishedVersions, model_set_without_river
from pipeline.settings import Settings
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
        contents = VersionContents(bootstrap, settings)
        self._published = PublishedVersions(settings, (), contents, model_set_without_river(), waiting)
        self._started = False

    @property
    def active(self) -> ActiveModels | None:
        """The active versions, with an untrained online model."""
        return self._published.model_set.active

    @property
    def history(self) -> VersionHistory:
        """What ``control`` has by now."""
        return self._published.history

    def refresh(self) -> None:
        """Take in all that was committed before this call."""
        if not self._started:
            self._follower.start()
            self._started = True
        self._published.add(self._follower.read_committed(self._waiting))

    def look(self) -> None:
        """Take in what has come, without asking for more; behind `refresh`."""
        self._published.add(self._follower.poll(0))

    def close(self) -> None:
        """Stop following."""
        self._follower.close()

    def first_policy(self) -> Policy | None:
        """Return the policy that became active together with the LightGBM version; None if it cannot be read."""
        active = self.active
        if active is None:
            return None
        for activation in reversed(self._published.history.activations):
            named = {version.name: version for version in activation.versions}
            if {"lightgbm", "policy"} <= named.keys() and named["lightgbm"].digest == active.lightgbm.digest:
                content = self._published.content(named["policy"])
                return None if content is None else Policy.from_payload(bytes(content.payload))
        return None
