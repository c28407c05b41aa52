"""What a transaction is taken to be, when several sources have said something about it.

The label that holds is the largest by (rank of its source, ``labelled_at``, severity of what it says), in this order;
a correction is a new, later label. Because a maximum is taken, what holds does not depend on the order in which labels
arrive, and a repeated label changes nothing. `LabelState.changes` does depend on it: it counts what happened.
"""

from typing import Final, Literal, NamedTuple

from schemas.codec import timestamp_us
from schemas.messages import Label

SOURCE_RANK: Final[dict[str, int]] = {
    "audit": 7,
    "analyst": 6,
    "chargeback": 5,
    "issuer": 4,
    "customer": 3,
    "simulator": 2,
    "rule": 0,
}
"""The higher one wins."""
UNKNOWN_SOURCE_RANK: Final = 1
"""Sources are an open enumeration: one that has no rank is believed before nobody."""

FRAUD: Final = "fraud"
LEGITIMATE: Final = "legitimate"
NOTHING: Final = "none"

_SEVERITY: Final = {FRAUD: 2, LEGITIMATE: 1, NOTHING: 0}

Outcome = Literal["first", "changed", "confirmed", "noted", "repeated", "outranked", "contradicted", "ignored"]

TRAVELS: Final[frozenset[Outcome]] = frozenset({"first", "changed"})
"""Outcomes that change what is known, and so must be passed on."""


class LabelState(NamedTuple):
    """The label that holds for one transaction."""

    rank: int
    labelled_at_us: int
    known: str
    """``fraud``, ``legitimate`` or ``none``."""
    changes: int
    """How often ``known`` has changed; 0 while nothing has ever been known."""

    @property
    def revision(self) -> int:
        """0 for the first knowledge of the transaction, then counting up."""
        return max(self.changes - 1, 0)


def known_value(label: str) -> str:
    """What a label says is known: ``disputed``, ``unknown`` and values that this release does not know are ``none``.

    >>> known_value("fraud"), known_value("disputed")
    ('fraud', 'none')
    """
    return label if label in (FRAUD, LEGITIMATE) else NOTHING


def source_rank(source: str) -> int:
    """Rank of a label's source.

    >>> source_rank("audit") > source_rank("analyst") > source_rank("a bank's own system") > source_rank("rule")
    True
    """
    return SOURCE_RANK.get(source, UNKNOWN_SOURCE_RANK)


def resolve(current: LabelState | None, label: Label) -> tuple[LabelState, Outcome]:
    """The state after ``label``, and what the label did.

    - ``first``: something is known for the first time; ``changed``: something else is known now (``none``, where a
      label was withdrawn). These two travel on.
    - ``confirmed``: it holds now and says what was known already; ``noted``: the same, but nothing is known.
    - ``repeated``: it is the label that holds. ``outranked``: another holds, and agrees. ``contradicted``: another
      holds, and says otherwise.
    - ``ignored``: from a rule, which knows nothing about the transaction that the models could learn; alone it leaves a
      state in which nothing is known and that every other label replaces.
    """
    rank = source_rank(label.source)
    if rank == SOURCE_RANK["rule"]:
        return current or LabelState(rank, timestamp_us(label.labelled_at), NOTHING, 0), "ignored"
    labelled_at_us = timestamp_us(label.labelled_at)
    known = known_value(label.label)
    if current is None:
        before, changes = NOTHING, 0
    else:
        before, changes = current.known, current.changes
        new_key = (rank, labelled_at_us, _SEVERITY[known])
        current_key = (current.rank, current.labelled_at_us, _SEVERITY[current.known])
        if new_key == current_key:
            return current, "repeated"
        if new_key < current_key:
            return current, "outranked" if known == before else "contradicted"
    if known == before:
        return LabelState(rank, labelled_at_us, known, changes), "noted" if known == NOTHING else "confirmed"
    return LabelState(rank, labelled_at_us, known, changes + 1), "first" if changes == 0 else "changed"
