"""Updates of the online model: what labels and their corrections are to it, so that its updates stay balanced.

A fraud is learned at its report, and a sample of the other transactions once they have reached the maturity without
one. Reports that come later are allowed for by weights, so that they train nothing themselves.
"""

from typing import Final, NamedTuple

from pipeline.learning.labels import KNOWN, KNOWN_FRAUD, KNOWN_NOTHING

PRESUMED: Final = "presumed_legitimate"
WITHDRAWN: Final = "withdrawn"
"""Label of an example whose transaction nothing is known about any more."""
_LABELS: Final = (*KNOWN, PRESUMED)
_PRESUMED: Final = _LABELS.index(PRESUMED)


class Learned(NamedTuple):
    """The online model's last update from a transaction."""

    number: int
    """Index in `KNOWN`, or behind it for what was presumed legitimate."""
    weight: float

    @classmethod
    def presumed(cls, weight: float) -> "Learned":
        """Return that of a transaction that was presumed legitimate."""
        return cls(_PRESUMED, weight)

    @property
    def label(self) -> str | None:
        """The label; None for nothing."""
        return None if self.number == KNOWN_NOTHING else _LABELS[self.number]


NOTHING_LEARNED: Final = Learned(KNOWN_NOTHING, 0.0)


class OnlineUpdate(NamedTuple):
    """The change that an example makes to the online model."""

    weight: float
    """Weight of its label; 0 for one that trains nothing."""
    former: Learned = NOTHING_LEARNED
    """The update that is undone before."""
    held: bool = False
    """True if it waits in the log until it is released."""


def online_update(
    learned: Learned, now: int, weight: float, reported_share: float, *, in_time: bool
) -> tuple[OnlineUpdate, Learned]:
    """Return what a label that changes what is known is to the online model, and what it has learned then.

    - What it learned before is undone, and the new label is learned. A withdrawn label is undone alone.
    - A fraud stands for those whose reports come after the maturity: it weighs 1 / F, and one of those nothing.
    - What was presumed legitimate stays so, since its weight allows for the frauds among it.

    Args:
        learned: What it was given of the transaction so far.
        now: Index in `KNOWN` of what is known from now on.
        weight: Weight of the example.
        reported_share: F, the share of the reported frauds whose reports come within the maturity.
        in_time: Whether the label is known within the maturity.

    >>> online_update(NOTHING_LEARNED, KNOWN.index("fraud"), 1.0, 0.5, in_time=True)[0].weight
    2.0
    """
    if learned.number in (_PRESUMED, now):
        return OnlineUpdate(0.0), learned
    if now == KNOWN_FRAUD and in_time:
        weight = 1.0 / reported_share
    elif now == KNOWN_NOTHING or (now == KNOWN_FRAUD and learned == NOTHING_LEARNED):
        weight = 0.0
    return OnlineUpdate(weight, learned), Learned(now, weight) if weight else NOTHING_LEARNED
