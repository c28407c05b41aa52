"""The label that holds for a transaction about which several sources have reported.

The label that holds is the largest by (rank of its source, ``labelled_at``, severity of what it says), in this order;
a correction is a new, later label. Because a maximum is taken, what holds does not depend on the order in which labels
arrive, and a repeated label changes nothing. Only the number of changes depends on it: it counts what happened.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, Literal, get_args

import numba
import numpy as np
from numpy.typing import NDArray

from schemas.codec import timestamp_us
from schemas.messages import Label
from schemas.times import utc_text

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
REVIEWER_RANK: Final = SOURCE_RANK["analyst"]
"""Sources from this rank on have looked at the transaction."""
UNKNOWN_SOURCE_RANK: Final = 1
"""Sources are an open enumeration: one that has no rank is believed before nobody."""

FRAUD: Final = "fraud"
LEGITIMATE: Final = "legitimate"
NOTHING: Final = "none"

KNOWN: Final = (NOTHING, LEGITIMATE, FRAUD)
"""Known values of a transaction, by number; a higher number is more severe."""
KNOWN_NOTHING, KNOWN_LEGITIMATE, KNOWN_FRAUD = range(len(KNOWN))
NO_LABEL: Final = -1
"""Rank of a state in which no label has been seen."""

Outcome = Literal["first", "changed", "confirmed", "noted", "repeated", "outranked", "contradicted", "ignored"]
OUTCOMES: Final[tuple[Outcome, ...]] = get_args(Outcome)
"""Outcomes by number."""
_FIRST, _CHANGED, _CONFIRMED, _NOTED, _REPEATED, _OUTRANKED, _CONTRADICTED, _IGNORED = range(len(OUTCOMES))
_RULE: Final = SOURCE_RANK["rule"]

StateNumbers = tuple[int, int, int, int]
"""(rank, ``labelled_at`` in microseconds, index of `KNOWN`, how often that changed): the label that holds."""
UNSEEN: Final[StateNumbers] = (NO_LABEL, 0, KNOWN_NOTHING, 0)
"""The state before the first label."""


def known_value(label: str) -> str:
    """Return the known value of a label; ``disputed``, ``unknown`` and values new to this release become ``none``.

    >>> known_value("fraud"), known_value("disputed")
    ('fraud', 'none')
    """
    return label if label in (FRAUD, LEGITIMATE) else NOTHING


def known_number(label: str) -> int:
    """Return the number of the known value of a label."""
    return KNOWN.index(known_value(label))


def source_rank(source: str) -> int:
    """Rank of a label's source.

    >>> source_rank("audit") > source_rank("analyst") > source_rank("a bank's own system") > source_rank("rule")
    True
    """
    return SOURCE_RANK.get(source, UNKNOWN_SOURCE_RANK)


def label_order(label: Label) -> tuple[int, int, int]:
    """Return a sort key of the labels of a transaction: of those that are no rule's the largest holds."""
    return source_rank(label.source), timestamp_us(label.labelled_at), known_number(label.label)


def holding_label(labels: Iterable[Label]) -> Label | None:
    """Return the label of a transaction that holds."""
    return max((label for label in labels if source_rank(label.source) != _RULE), key=label_order, default=None)


def too_late(event_time: datetime | None, known_at: datetime, grace_days: float) -> str | None:
    """Return a warning where a label comes too long after its transaction to count.

    Args:
        event_time: Aware time of the transaction; without one there is no warning.
        known_at: Aware time from which the label is known.
        grace_days: Days that a label may come later.
    """
    if event_time is None or known_at - event_time <= timedelta(days=grace_days):
        return None
    return (
        f"It comes too late to count: the transaction is of {utc_text(event_time)}, more than {grace_days:g} days "
        "before (FRAUD_PIPELINE_LABEL_GRACE_DAYS)."
    )


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def resolve_numbers(current: StateNumbers, rank: int, labelled_at_us: int, known: int) -> tuple[StateNumbers, int]:
    """Return the state after a label, and what the label did.

    - ``first``: something is known for the first time; ``changed``: something else is known now (``none``, where a
      label was withdrawn). These two travel on.
    - ``confirmed``: it holds now and says what was known already; ``noted``: the same, but nothing is known.
    - ``repeated``: it is the label that holds. ``outranked``: another holds, and agrees. ``contradicted``: another
      holds, and says otherwise.
    - ``ignored``: from a rule, which knows nothing about the transaction that the models could learn; alone it leaves a
      state in which nothing is known and that every other label replaces.

    Args:
        current: State before the label; `UNSEEN` before the first one.
        rank: `source_rank` of the label's source.
        labelled_at_us: When it was made, in microseconds since 1970.
        known: Index in `KNOWN` of what it says.

    Returns:
        The new state, and an index of `OUTCOMES`.
    """
    held_rank, held_at_us, before, changes = current
    if rank == _RULE:
        return ((rank, labelled_at_us, KNOWN_NOTHING, 0) if held_rank == NO_LABEL else current), _IGNORED
    if held_rank != NO_LABEL:
        new, held = (rank, labelled_at_us, known), (held_rank, held_at_us, before)
        if new == held:
            return current, _REPEATED
        if new < held:
            return current, _OUTRANKED if known == before else _CONTRADICTED
    if known == before:
        return (rank, labelled_at_us, known, changes), _NOTED if known == KNOWN_NOTHING else _CONFIRMED
    return (rank, labelled_at_us, known, changes + 1), _FIRST if changes == 0 else _CHANGED


def holding(
    names: Sequence[NDArray[Any]], rank: NDArray[Any], at_us: NDArray[np.int64], known: NDArray[Any]
) -> NDArray[np.intp]:
    """Return which of n labels hold, `resolve_numbers` over columns; labels of rules are left out before.

    Args:
        names: Columns that identify transactions, each of shape (n,); the last one is the first to sort by.
        rank: `source_rank` of their sources; shape (n,).
        at_us: When they were made, in microseconds since 1970; shape (n,).
        known: Indexes in `KNOWN`; shape (n,).

    Returns:
        Rows, in the order of ``names``; of equal labels the last one.
    """
    order = np.lexsort((known, at_us, rank, *names))
    last = np.ones(len(order), np.bool_)
    last[:-1] = np.any([name[order][1:] != name[order][:-1] for name in names], axis=0)
    rows: NDArray[np.intp] = order[last]
    return rows
