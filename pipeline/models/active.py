"""Following which versions are active: ``control`` says so, ``models`` has their content."""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from pipeline.engine.models import ModelBoard
from pipeline.kafka.follower import TopicFollower
from pipeline.kafka.internal import readable
from pipeline.kafka.quarantine import decode_control
from pipeline.metrics import WorkerMetrics
from pipeline.models.contents import VersionContents, sound_versions
from pipeline.scoring.errors import ModelError
from pipeline.settings import Settings
from schemas.messages import Activation, ModelVersion
from schemas.records import Record
from schemas.topics import CONTROL, MODELS

log = logging.getLogger(__name__)

ACTIVATED: Final = frozenset({"lightgbm", "policy"})
"""Names whose active version an `Activation` says; it may name rate tables besides, which batches name themselves."""
RIVER: Final = "river"
RETRY_S: Final = 1.0
"""Time after which content that an activation names and that could not be read is looked for again."""


def _no_wait() -> None:
    """Nobody asks meanwhile."""


class _Pending(NamedTuple):
    activation: Activation
    names: frozenset[str]
    """Those that no later activation has settled."""


class ModelSubscriber:
    """Follows the active versions on the thread of one agent.

    ``board`` changes between two batches only, by all versions of an activation at once. A version that cannot be used
    is refused, reported and counted, and the versions before it stay active.

    Args:
        bootstrap: Addresses of brokers.
        settings: Give the topics' full names and the client's configuration.
        board: The board to start from, without versions.
        metrics: Count what is refused, and show what is active.
    """

    def __init__(self, bootstrap: str, settings: Settings, board: ModelBoard, metrics: WorkerMetrics) -> None:
        self.board, self._metrics = board, metrics
        self._control = TopicFollower(bootstrap, settings, CONTROL)
        self._models = TopicFollower(bootstrap, settings, MODELS)
        self._contents = VersionContents(bootstrap, settings, metrics.records_refused)
        self._pending: list[_Pending] = []
        """Activations that could not be applied yet, oldest first."""
        self._first_offsets: dict[str, int] = {}
        """By digest, the lowest offset of ``models`` from which an activation says that it can be found."""
        self._retry_s = 0.0
        self._started = self._reported_none = False

    def refresh(self) -> ModelBoard:
        """Take in what was published since the last call; what is there already at the first one."""
        if not self._started:
            self._started = True
            # Followed from here on; `_find_river` looks for what is there already.
            self._models.start({0: self._contents.readable().stop})
            self._take(self._control.start().read_to_end(), _no_wait)
        else:
            self._take(self._control.poll(0), _no_wait)
            self._take_river(self._models.poll(0))
        if self.board.active is None and not self._reported_none:
            self._reported_none = True
            log.warning("no LightGBM version is active; publish one with `fraud-pipeline train --publish`")
        return self.board

    def catch_up(self, waiting: Callable[[], None]) -> ModelBoard:
        """Take in all that was committed before this call; ``waiting`` is called meanwhile, and may raise."""
        self.refresh()
        self._retry_s = 0.0
        self._take(self._control.read_committed(waiting), waiting)
        self._take_river(self._models.read_committed(waiting))
        return self.board

    def close(self) -> None:
        """Stop following."""
        self._control.close()
        self._models.close()

    def _take(self, records: Iterable[Record], waiting: Callable[[], None]) -> None:
        """Take in records of ``control``, and apply what is pending."""
        found = False
        for _, item in readable(records, decode_control, self._metrics.records_refused):
            names = frozenset(_names(item)) if isinstance(item, Activation) else frozenset()
            if isinstance(item, Activation) and names:
                found = True
                self._pending.append(_Pending(item, names))
                for reference in item.versions:
                    known = self._first_offsets.get(reference.digest, reference.offset)
                    self._first_offsets[reference.digest] = min(known, reference.offset)
        if self._pending and (found or time.monotonic() >= self._retry_s):
            self._apply_pending(waiting)
            self._retry_s = time.monotonic() + RETRY_S

    def _apply_pending(self, waiting: Callable[[], None]) -> None:
        """Apply activations, newest first: an older one matters only for names that no newer one has settled."""
        before, left = self.board, list[_Pending]()
        settled: frozenset[str] = frozenset()
        for activation, names in reversed(self._pending):
            if not (open_names := names - settled):
                continue
            contents = self._contents_of(activation, open_names, waiting)
            if contents is None:
                left.insert(0, _Pending(activation, open_names))
            elif self._accepts(*contents):
                settled |= open_names
        self._pending = left
        if self.board is not before:
            self._find_river(waiting)
            self._report()

    def _contents_of(
        self, activation: Activation, names: frozenset[str], waiting: Callable[[], None]
    ) -> list[ModelVersion] | None:
        """Return the contents that an activation names, those of ``names`` only; None while one cannot be read."""
        contents = []
        for reference in activation.versions:
            if reference.name not in names:
                continue
            content = self._contents.find(reference, waiting)
            if content is None:
                log.warning(
                    "%s %s was activated, and its content cannot be read on topic models: the versions before it stay "
                    "active; publish it again", reference.name, reference.version,
                )  # fmt: skip
                return None
            contents.append(content)
        return contents

    def _accepts(self, *versions: ModelVersion) -> bool:
        try:
            self.board = self.board.updated(*versions)
        except ModelError as error:
            for version in versions:
                log.error("%s version %s is refused: %s", version.name, version.version, error)
                self._metrics.model_refused(version.name)
            return False
        return True

    def _find_river(self, waiting: Callable[[], None]) -> None:
        """Look for the newest River version on the active LightGBM version among what was published before."""
        if self.board.river is not None or (lightgbm := self.board.lightgbm) is None:
            return
        published = self._contents.newest_first(
            self._first_offsets.get(lightgbm.digest, 0), self._models.position(0), waiting
        )
        for _, version in published:
            before = self.board
            if version.name == RIVER and self._accepts(version) and self.board is not before:
                return

    def _take_river(self, records: Sequence[Record]) -> None:
        """Take in the newest River version among new records of ``models``; the topic may hold many."""
        versions = [version for _, version in sound_versions(records, self._metrics.records_refused)]
        before = self.board
        for version in reversed(versions):
            if version.name == RIVER and self._accepts(version) and self.board is not before:
                self._report()
                return

    def _report(self) -> None:
        if (active := self.board.active) is None:
            return
        for name, version in (
            ("lightgbm", active.lightgbm.version), ("river", active.river.version), ("policy", active.policy.version)
        ):  # fmt: skip
            self._metrics.model_version(name, version)


def _names(activation: Activation) -> set[str]:
    return {reference.name for reference in activation.versions} & ACTIVATED
