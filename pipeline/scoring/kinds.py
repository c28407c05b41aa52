"""The kinds of models that score a transaction: LightGBM, and those that are scored beside it.

A kind is registered here once. Scoring, decisions, alerts, blocks of ``features``, exports, metrics and comparisons go
by `KINDS`. ``CONTRIBUTING.md`` lists what a further kind needs besides.
"""

from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.scoring.errors import ModelError


class Scorer(Protocol):
    """An immutable version of a model that is scored beside LightGBM."""

    @property
    def version(self) -> str:
        """Two models never share one. For a kind that is activated: the first 12 digits of the payload's SHA-256.

        For River: ``<first digits of the configuration's digest>@<offset in examples>``.
        """

    def logit(self, features: NDArray[np.float64], base_logit: NDArray[np.float64]) -> NDArray[np.float64]:
        """Log-odds, shape (n,), of features of shape (n, len(FEATURES)) and LightGBM's log-odds (n,)."""

    def evidence(self, features: NDArray[np.float64], base_logit: NDArray[np.float64]) -> list[str]:
        """For each row, what it saw that raised its log-odds most, in words; empty where nothing did."""

    def to_payload(self) -> bytes:
        """The model as one JSON object, without code."""


class ScoreReason(NamedTuple):
    """The reason of an alert for what a model beside LightGBM added to the score."""

    code: str
    meaning: str
    """Reason code, as in the table of reasons in ``docs/models.md``."""
    raised: str
    """The sentence; ``{evidence}`` is what the model saw, in brackets, and ``{times}`` how far it raised the odds."""
    not_raised: str
    """The sentence for a model that raised nothing, with ``{evidence}``."""


class ModelKind(NamedTuple):
    """A kind of model."""

    name: str
    """Its name in ``model_scores`` and ``versions``, and on ``models``."""
    title: str
    """Its name for people."""
    reason: ScoreReason | None = None
    """None for LightGBM, whose reasons are those of the features."""
    load: Callable[[bytes], Scorer] | None = None
    """Reads the payload of a version; raises `ModelError`. None where `ModelSet` knows how."""
    activated: bool = True
    """True if an `Activation` says which version is active; else the newest one on ``models`` is."""
    log_odds: str = ""
    """Field of decisions, rows of ``features`` and examples with its log-odds, for what learns on them; empty for
    none."""


LIGHTGBM: Final = ModelKind("lightgbm", "LightGBM", log_odds="logit")
RIVER: Final = ModelKind(
    "river",
    "River",
    reason=ScoreReason(
        "ONLINE_MODEL",
        "The online model, from recent labels.",
        "Recent labels raised the odds of transactions like this one{evidence} {times}.",
        "Recent labels say nothing against transactions like this one{evidence}.",
    ),
    activated=False,
    log_odds="river_logit",
)

KINDS: Final[tuple[ModelKind, ...]] = (LIGHTGBM, RIVER)
"""All kinds, LightGBM first; models are scored in this order."""
BESIDE: Final = KINDS[1:]
"""Kinds that are scored beside LightGBM."""
WITH_LOG_ODDS: Final = [(column, kind) for column, kind in enumerate(KINDS) if kind.log_odds]
"""Kinds whose log-odds messages carry, each with its position in `KINDS`."""
BY_NAME: Final = {kind.name: kind for kind in KINDS}


class Unpublished:
    """A kind of which no version is active: LightGBM's log-odds as they are."""

    def __init__(self, version: str = "none") -> None:
        self.version = version

    def logit(self, features: NDArray[np.float64], base_logit: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return ``base_logit``."""
        del features
        return base_logit

    def evidence(self, features: NDArray[np.float64], base_logit: NDArray[np.float64]) -> list[str]:
        """Return nothing for each row."""
        del features
        return [""] * len(base_logit)

    def to_payload(self) -> bytes:
        """Raise: there is nothing to publish."""
        raise ModelError("no version of this model is active")
