"""Reading a cluster for the service: each topic from where the last look ended."""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from pipeline.decision.policy import Policy
from pipeline.kafka.readers.topic_reader import read_batches
from pipeline.models.contents import VersionContents
from pipeline.models.library import PublishedVersions
from pipeline.models.version_history import PROGRAM, PROMOTE, RETRAIN, ROLLBACK, Tenure, VersionHistory
from pipeline.retraining.challenger import Champion, trained_until_us
from pipeline.scoring.errors import ModelError
from pipeline.scoring.lightgbm_model import LightGBMModel
from pipeline.settings import Settings
from pipeline.training.served import ServedLog
from schemas.messages import Assessment, LearningSwitch
from schemas.records import Record
from schemas.topics import ACCEPTED_LABELS, CONTROL, DECISION_FEATURES, Topic

SERVICE: Final = RETRAIN
"""The service's name, also among figures."""
BY: Final = f"{PROGRAM}{SERVICE}"
"""The writer of the service's records."""
AS_OF: Final = "as_of_us"
"""The figure that says up to which event time a cycle had read."""
_FEEDBACK: Final = "feedback"
"""The agent whose quarantines of `features` count: it reads them to the same end."""
_MOST_MODELS: Final = 8
"""Shadow versions that are held at a time."""


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
            as_of_us = event.figures.get(AS_OF)
            found = found._replace(last_us=as_of_us if isinstance(as_of_us, int) else found.last_us)
        if not isinstance(event, Assessment) and event.step == ROLLBACK:
            # A person's too: the same recipe would bring back what was rolled back.
            found = found._replace(rollback_us=found.last_us)
    return found


def read_served(bootstrap: str, settings: Settings, window_days: float) -> ServedLog:
    """Return what a cluster has served, read once.

    Args:
        window_days: Days of event time before the newest decision that are held.

    Raises:
        TopicError: A topic is missing, or a part of it cannot be read.
    """
    topics = ClusterLog(bootstrap, settings, window_days)
    topics.read()
    return topics.served


class ClusterLog:
    """The contents of a cluster's topics, up to the last look.

    Args:
        window_days: Days of event time of decisions that are held.
    """

    def __init__(self, bootstrap: str, settings: Settings, window_days: float) -> None:
        self._bootstrap, self._settings = bootstrap, settings
        self.served = ServedLog(settings, window_days)
        contents = VersionContents(bootstrap, settings)
        self.published = PublishedVersions(settings, (), contents)
        self._positions: dict[str, dict[int, int]] = {}
        self._models: dict[str, LightGBMModel | None] = {}

    def read(self) -> bool:
        """Read what was committed since the last look; returns whether there were decisions or labels.

        Raises:
            TopicError: A topic is missing, or a part of it cannot be read.
        """
        self.read_control()

        def features(records: Sequence[Record]) -> None:
            self.served.add_features(self.published.quarantined.without(_FEEDBACK, records))

        found = [self._read(DECISION_FEATURES, features), self._read(ACCEPTED_LABELS, self.served.add_labels)]
        return any(found)

    def read_control(self) -> None:
        """Read the records of ``control`` since the last look."""
        self._read(CONTROL, self.published.add)

    @property
    def offsets(self) -> dict[str, dict[str, int]]:
        """Offsets behind what was read, by topic and partition."""
        return {
            topic: {str(number): offset for number, offset in sorted(positions.items())}
            for topic, positions in self._positions.items()
            if topic != CONTROL.name
        }

    def champion(self) -> Champion | None:
        """Return the active version and its policy, as workers have them; None without one."""
        active = self.published.model_set.active
        return None if active is None else Champion(active.lightgbm, active.policy)

    def tenures(self, champion: Champion) -> list[Tenure]:
        """Return the versions up to the active one, oldest first; a later one that no worker could use is left out."""
        tenures = self.published.history.tenures()
        ends = [n for n, tenure in enumerate(tenures, 1) if tenure.lightgbm.digest == champion.model.digest]
        return tenures[: ends[-1]] if ends else []

    def model(self, tenure: Tenure) -> LightGBMModel | None:
        """Return a version that was active once; None where it cannot be read or used."""
        digest = tenure.lightgbm.digest
        if digest not in self._models:
            if len(self._models) >= _MOST_MODELS:
                self._models.clear()
            payload = self.published.payload("lightgbm", digest)
            try:
                self._models[digest] = None if payload is None else LightGBMModel.from_payload(payload)
            except ModelError:
                self._models[digest] = None
        return self._models[digest]

    def policy(self, tenure: Tenure) -> Policy | None:
        """Return the last policy of a version that was active once; None where it cannot be read or used."""
        if tenure.policy is None:
            return None
        payload = self.published.payload("policy", tenure.policy.digest)
        try:
            return None if payload is None else Policy.from_payload(payload)
        except ModelError:
            return None

    def newest_trained_before(self, tenures: Sequence[Tenure], start_us: int) -> LightGBMModel | None:
        """Return the newest version that says it was trained on nothing at or after an event time."""
        for tenure in reversed(tenures):
            model = self.model(tenure)
            until_us = None if model is None else trained_until_us(model)
            if until_us is not None and until_us < start_us:
                return model
        return None

    def _read(self, topic: Topic, take: Callable[[Sequence[Record]], None]) -> bool:
        positions = self._positions.setdefault(topic.name, {})
        name, found = self._settings.topic(topic.name), False
        for records in read_batches(self._bootstrap, name, settings=self._settings, start=positions):
            take(records)
            positions.update({record.partition: record.offset + 1 for record in records})
            found = True
        return found
