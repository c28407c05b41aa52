"""Sentences about input that no decision or training used, from the counts of a backtest."""

from collections.abc import Mapping
from typing import Final

from pipeline.decision.reason_texts import count
from pipeline.engine.cards.joins import NO_TRANSACTION
from pipeline.learning.labels import OUTCOMES

REPEATED: Final = "repeated transactions"
NOT_READ: Final = "labels: transaction_not_read"
"""Labels without a transaction that may be of one before the warm-up: it was not read, so that nobody refused them."""
_NOTED: Final = "labels: noted"
_EARLY: Final = "labels: early"
"""Labels that came before their transaction, or without one."""
_SOME: Final = 0.01
"""Share of rows from which on a refusal is more than an accident."""
_MOST: Final = 0.5


def refusal(kind: str, code: str) -> str:
    """Name of the count of what was refused: rows of ``kind`` for one reason."""
    return f"refused {kind}s: {code}"


def refused_text(counts: Mapping[str, int]) -> str:
    """All that was refused, was repeated, or says nothing, in one sentence; empty where that is nothing.

    >>> refused_text({"refused transactions: amount_zero": 3, "labels: first": 8})
    'Refused: 3 transactions (amount_zero 3).'
    >>> refused_text({"refused transactions: amount_zero": 1})
    'Refused: 1 transaction (amount_zero 1).'
    """
    refused = [(kind, _refused(counts, kind)) for kind in ("transaction", "label")]
    kinds = [f"{count(sum(codes.values()), kind)} ({_named(codes)})" for kind, codes in refused if codes]
    parts = [f"Refused: {' and '.join(kinds)}"] if kinds else []
    if repeated := counts.get(REPEATED, 0):
        parts.append(f"Left out since they repeat others: {count(repeated, 'transaction')}")
    if noted := counts.get(_NOTED, 0):
        parts.append(f"Labels that say neither fraud nor legitimate: {noted:,}")
    if unread := counts.get(NOT_READ, 0):
        parts.append(f"Labels without a transaction, which may lie before the warm-up: {unread:,}")
    return "".join(f"{part}. " for part in parts).rstrip()


def warnings(counts: Mapping[str, int], decided: int) -> list[str]:
    """Return the warnings that a reader must see first; ``decided`` transactions were neither refused nor repeats.

    That labels have no transaction is no wonder where there are more than of what was read: it counts if all have none.
    """
    found = []
    sold, repeated = _refused(counts, "transaction"), counts.get(REPEATED, 0)
    rows = decided + repeated + sum(sold.values())
    if sum(sold.values()) >= _SOME * rows and sold:
        found.append(f"{sum(sold.values()):,} of {rows:,} transactions were refused, and not decided: {_named(sold)}")
    if repeated > _MOST * rows:
        found.append(f"{repeated:,} of {rows:,} transactions repeat others, and were not decided")
    refused = _refused(counts, "label")
    taken = sum(
        count for name, count in counts.items() if name.startswith("labels") and name.rpartition(": ")[2] in OUTCOMES
    )
    labels = taken + sum(refused.values())
    grave = {code: count for code, count in refused.items() if code != NO_TRANSACTION}
    if sum(grave.values()) >= _SOME * labels and grave:
        found.append(f"{sum(grave.values()):,} of {labels:,} labels were refused: {_named(grave)}")
    early = counts.get(_EARLY, 0)
    if early and not taken:
        found.append(f"none of {early:,} labels has its transaction among those that were read")
    noted = counts.get(_NOTED, 0)
    if noted > _MOST * taken:
        found.append(f"{noted:,} of {taken:,} labels say neither fraud nor legitimate, and count as none")
    return found


def _refused(counts: Mapping[str, int], kind: str) -> dict[str, int]:
    """Rows of ``kind`` that were refused, by code, the most first."""
    prefix = refusal(kind, "")
    found = {name.removeprefix(prefix): count for name, count in counts.items() if name.startswith(prefix) and count}
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _named(refused: Mapping[str, int]) -> str:
    return ", ".join(f"{code} {count:,}" for code, count in refused.items())
