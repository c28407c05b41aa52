"""The one rule of which versions are active: what workers follow and what backtests look up."""

import logging
from collections.abc import Callable
from typing import Final, NamedTuple

from pipeline.decision.lists import LISTS
from pipeline.decision.rules import RULES
from pipeline.engine.scores.active_models import ModelSet
from pipeline.scoring import kinds
from pipeline.scoring.errors import ModelError, ModelIncomplete
from pipeline.scoring.kinds import KINDS
from schemas.messages import Activation, ModelVersion, VersionReference

log = logging.getLogger(__name__)

ACTIVATED: Final = frozenset({*(kind.name for kind in KINDS if kind.activated), "policy", RULES, LISTS})
"""Names whose active version an `Activation` says; it may name files besides (`pipeline.models.published_files`)."""
RIVER: Final = kinds.RIVER.name

Find = Callable[[VersionReference], ModelVersion | None]
"""Return the content of a reference; None while it cannot be read."""


class _Pending(NamedTuple):
    activation: Activation
    names: frozenset[str]
    """Those for which no later activation has been applied."""
    incomplete: bool = False
    """True once one of its versions turned out to be incomplete: that was reported."""


class Activations:
    """The activations of ``control``, applied in their order as far as their contents can be read.

    Args:
        on_refused: Called with the name of each version that cannot be used.
    """

    def __init__(self, on_refused: Callable[[str], None]) -> None:
        self._on_refused = on_refused
        self._pending: list[_Pending] = []
        self._first_offsets: dict[str, int] = {}

    def add(self, activation: Activation) -> None:
        """Take in an activation that follows all others."""
        for reference in activation.versions:
            known = self._first_offsets.get(reference.digest, reference.offset)
            self._first_offsets[reference.digest] = min(known, reference.offset)
        if names := frozenset(reference.name for reference in activation.versions) & ACTIVATED:
            self._pending.append(_Pending(activation, names))

    def first_offset(self, digest: str) -> int:
        """Return the lowest offset of ``models`` from which an activation says that a content can be found."""
        return self._first_offsets.get(digest, 0)

    @property
    def awaited(self) -> frozenset[str]:
        """Digests of the contents that activations wait for, and of those beside them."""
        return frozenset(reference.digest for pending in self._pending for reference in pending.activation.versions)

    @property
    def has_incomplete(self) -> bool:
        """True if a version is incomplete: `apply` may find the rest of it at any time."""
        return any(pending.incomplete for pending in self._pending)

    def apply(self, model_set: ModelSet, find: Find) -> ModelSet:
        """Return ``model_set`` with the activations whose contents are there, each as a whole or not at all.

        The newest comes first: an older one matters only for names for which no newer one could be applied. One whose
        content cannot be read stays pending, and so does the newest of each name that is incomplete; one with a version
        that cannot be used is refused.
        """
        applied, incomplete_names = frozenset[str](), frozenset[str]()
        left: list[_Pending] = []
        for activation, names, incomplete in reversed(self._pending):
            if not (names_left := names - applied):
                continue
            contents = [find(reference) for reference in activation.versions if reference.name in names_left]
            if any(content is None for content in contents):
                left.append(_Pending(activation, names_left, incomplete))
                continue
            versions = [content for content in contents if content is not None]
            try:
                model_set = model_set.updated(*versions)
            except ModelError as error:
                waits = isinstance(error, ModelIncomplete) and not names_left <= incomplete_names
                if waits:
                    left.append(_Pending(activation, names_left, incomplete=True))
                    incomplete_names |= names_left
                    if incomplete:
                        continue
                for version in versions:
                    state = "is not active yet, and is tried again" if waits else "is refused"
                    log.error("%s version %s %s: %s", version.name, version.version, state, error)
                    self._on_refused(version.name)
            else:
                applied |= names_left
        self._pending = left[::-1]
        return model_set
