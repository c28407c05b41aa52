"""Following which versions are active: ``control`` says so, ``models`` has their content."""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from pipeline.decision.rules import RULES
from pipeline.engine.scores.active_models import ActiveModels, ModelSet
from pipeline.kafka.readers.follower import TopicFollower
from pipeline.kafka.records.internal import TrustedRecords
from pipeline.kafka.session.quarantine import decode_control
from pipeline.learning.trained_labels import warning_of_labels, warning_of_share
from pipeline.models.activation import RIVER, Activations
from pipeline.models.contents import VersionContents, sound_versions
from pipeline.models.registry import LIGHTGBM
from pipeline.observability.metrics import WorkerMetrics
from pipeline.scoring.errors import ModelError
from pipeline.settings import Settings
from schemas.messages import Activation, LearningSwitch, ModelVersion, VersionReference
from schemas.records import Record
from schemas.times import US_PER_DAY
from schemas.topics import CONTROL, MODELS

log = logging.getLogger(__name__)

MOST_SEARCHES: Final = 10
"""Contents that are looked for between two batches."""
INCOMPLETE_S: Final = 5.0
"""Pause between two looks for the rest of an incomplete version."""


class ModelSubscriber:
    """Follows the active versions on the thread of one agent.

    ``model_set`` changes between two batches only, by all versions of an activation at once. A version that cannot be
    used is refused, reported and counted, and the versions before it stay active.

    Args:
        model_set: The model set to start from, without versions.
        metrics: Count what is refused, and show what is active.
        waiting: Called while no broker answers; may raise.
    """

    def __init__(
        self,
        bootstrap: str,
        settings: Settings,
        model_set: ModelSet,
        metrics: WorkerMetrics,
        waiting: Callable[[], None] = lambda: None,
    ) -> None:
        self.model_set, self._metrics, self._waiting = model_set, metrics, waiting
        self.frozen = False
        """True while learning is frozen, by the newest `LearningSwitch`."""
        self._control = TopicFollower(bootstrap, settings, CONTROL, metrics.records_refused)
        self._models = TopicFollower(bootstrap, settings, MODELS, metrics.records_refused)
        self._trusted = TrustedRecords(settings, metrics.records_refused)
        self._contents = VersionContents(bootstrap, settings, metrics.records_refused)
        self._activations = Activations(metrics.model_refused)
        self._looked_for: set[str] = set()
        """Digests that were looked for and not found: they can only come with new records of ``models``."""
        self._arrived: dict[str, ModelVersion] = {}
        """Contents of such digests that came since."""
        self._searches = 0
        self._unsearched = False
        """True while contents are left to look for: a few at each call, so that no number of them stops deciding."""
        self._next_look_s = 0.0
        """Time of the next look for the rest of an incomplete version."""
        self._started = self._reported_none = False
        self._reported = settings.label_regime
        self._in_time = round(settings.maturity_days * US_PER_DAY), settings.reported_share

    def refresh(self) -> ModelSet:
        """Take in what was published since the last call; what is there already at the first one."""
        if not self._started:
            # Followed from here on; what lies before is looked for.
            self._models.start({0: self._contents.readable(self._waiting).stop})
            self._take(self._control.start().read_to_end(self._waiting), [], self._waiting)
            self._started = True
        else:
            # In this order: an activation is written behind the contents that it names.
            control = self._control.poll(0)
            self._take(control, self._models.poll(0), self._waiting)
        if self.model_set.active is None and not self._reported_none:
            self._reported_none = True
            log.warning("no LightGBM version is active; publish one with `fraud-pipeline train --publish`")
        return self.model_set

    def catch_up(self, waiting: Callable[[], None]) -> ModelSet:
        """Take in all that was committed before this call; ``waiting`` is called meanwhile, and may raise."""
        self.refresh()
        control = self._control.read_committed(waiting)
        self._take(control, self._models.read_committed(waiting), waiting)
        return self.model_set

    def close(self) -> None:
        """Stop following."""
        self._control.close()
        self._models.close()

    def _take(self, control: Sequence[Record], models: Sequence[Record], waiting: Callable[[], None]) -> None:
        """Take in new records of both topics."""
        before = self.model_set
        published = [version for _, version in sound_versions(models, self._trusted)]
        arrived = {version.digest: version for version in published if version.digest in self._looked_for}
        self._arrived |= arrived
        activated = False
        for _, item in self._trusted.readable(control, decode_control):
            if isinstance(item, Activation):
                self._activations.add(item)
                activated = True
            elif isinstance(item, LearningSwitch):
                self._switch(item)
        looks = self._activations.has_incomplete and time.monotonic() >= self._next_look_s
        if activated or arrived or self._unsearched or looks:
            self._searches, self._unsearched = 0, False
            self.model_set = self._activations.apply(self.model_set, partial(self._find, waiting=waiting))
            self._next_look_s = time.monotonic() + INCOMPLETE_S
            self._arrived = {at: model for at, model in self._arrived.items() if at in self._activations.awaited}
        if before.lightgbm is None and self.model_set.lightgbm is not None and self.model_set.river is None:
            self._find_river(waiting)
        for version in reversed(published):
            if version.name == RIVER and self._takes_river(version):
                break
        if self.model_set is not before:
            self._report(before.active, self.model_set.active)

    def _switch(self, item: LearningSwitch) -> None:
        if item.frozen != self.frozen:
            log.warning("learning is %s by %s: %s", "frozen" if item.frozen else "unfrozen", item.by, item.reason)
        self.frozen = item.frozen
        self._metrics.show("learning_frozen", item.frozen)

    def _find(self, reference: VersionReference, waiting: Callable[[], None]) -> ModelVersion | None:
        digest = reference.digest
        if digest in self._looked_for:
            found = self._arrived.get(digest)
            return found if found is not None and found.name == reference.name else None
        if self._searches >= MOST_SEARCHES:
            self._unsearched = True
            return None
        self._searches += 1
        content = self._contents.find(reference, waiting)
        if content is None:
            self._looked_for.add(digest)
            log.warning(
                "%s %s was activated, and its content cannot be read on topic models: the versions before it stay "
                "active; publish it again", reference.name, reference.version,
            )  # fmt: skip
        return content

    def _find_river(self, waiting: Callable[[], None]) -> None:
        """Look for the newest River version among what was published before."""
        start = self._contents.readable(waiting).start
        for _, version in self._contents.newest_first(start, self._models.positions[0], waiting):
            if version.name == RIVER and self._takes_river(version):
                return

    def _takes_river(self, version: ModelVersion) -> bool:
        before = self.model_set
        try:
            self.model_set = before.updated(version)
        except ModelError as error:
            log.error("%s version %s is refused: %s", version.name, version.version, error)
            self._metrics.model_refused(version.name)
        return self.model_set is not before

    def _report(self, before: ActiveModels | None, after: ActiveModels | None) -> None:
        if after is None:
            return
        for name, model in after.named.items():
            old, new = None if before is None else before.named[name].version, model.version
            if not new:
                continue
            self._metrics.model_version(name, new)
            if new == old:
                continue
            # River has a new version a second while labels come.
            log.log(
                logging.DEBUG if name == RIVER else logging.INFO, "%s version %s is active (was %s)", name, new, old
            )
            self._metrics.count("model_changes", name)
            if name == RULES:
                self._metrics.forget("rule_stopped")
                for rule in after.rules.rules:
                    if rule.is_current:
                        self._metrics.show("rule_stopped", rule.state == "stopped", rule.code)
            if name == LIGHTGBM:
                found = [warning_of_share(after.lightgbm, *self._in_time)]
                if self._reported is not None:
                    found.append(warning_of_labels(after.lightgbm, self._reported))
                for warning in filter(None, found):
                    log.warning("%s", warning)
