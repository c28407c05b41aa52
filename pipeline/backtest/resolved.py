"""`pipeline.learning.labels.resolve` on numbers, compiled; a test holds the two to each other."""

from typing import Final

import numba

from pipeline.learning.labels import FRAUD, LEGITIMATE, NOTHING, SOURCE_RANK

KNOWN: Final = (NOTHING, LEGITIMATE, FRAUD)
"""What is known of a transaction, by number; a higher number is graver."""
NO_LABEL: Final = -1
"""The rank of a state in which no label has been seen."""
OUTCOMES: Final = (
    "first",
    "changed",
    "confirmed",
    "noted",
    "repeated",
    "outranked",
    "contradicted",
    "ignored",
)
"""`pipeline.learning.labels.Outcome`, by number."""
_FIRST, _CHANGED, _CONFIRMED, _NOTED, _REPEATED, _OUTRANKED, _CONTRADICTED, _IGNORED = range(len(OUTCOMES))
_RULE: Final = SOURCE_RANK["rule"]
_NOTHING: Final = KNOWN.index(NOTHING)

State = tuple[int, int, int, int]
"""(rank, ``labelled_at`` in microseconds, known, changes), as `pipeline.learning.labels.LabelState`."""


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def resolve_numbers(current: State, rank: int, labelled_at_us: int, known: int) -> tuple[State, int]:
    """The state after a label of ``rank`` that says ``known``, and the number of what it did."""
    held_rank, held_at_us, before, changes = current
    if rank == _RULE:
        return ((rank, labelled_at_us, _NOTHING, 0) if held_rank == NO_LABEL else current), _IGNORED
    if held_rank != NO_LABEL:
        new, held = (rank, labelled_at_us, known), (held_rank, held_at_us, before)
        if new == held:
            return current, _REPEATED
        if new < held:
            return current, _OUTRANKED if known == before else _CONTRADICTED
    if known == before:
        return (rank, labelled_at_us, known, changes), _NOTED if known == _NOTHING else _CONFIRMED
    return (rank, labelled_at_us, known, changes + 1), _FIRST if changes == 0 else _CHANGED
