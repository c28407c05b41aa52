"""Alerts that suppressions have hidden, from ``decisions``: hits, frauds and money of each; and the end at their caps.

A cap counts over all partitions, so that one process keeps it, as `pace` keeps a budget: it removes the entry by a
change of the lists, which decisions name. A restore and a replay count nothing anew.
"""

import logging
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Final

import msgspec

from pipeline.decision.online_gate import LabelReport
from pipeline.kafka.cluster.log_offsets import starts_at
from pipeline.kafka.readers.follower import TopicFollower
from pipeline.kafka.records.internal import not_counted, readable
from pipeline.learning.labels import KNOWN_FRAUD, source_rank
from pipeline.models.changes import ChangeAuthor
from pipeline.models.list_changes import ListChanges
from pipeline.models.publish import changed
from pipeline.settings import Settings
from schemas.messages import ListEntry, RecordPosition
from schemas.records import Record
from schemas.times import US_PER_HOUR, US_PER_MS
from schemas.topics import DECISIONS

log = logging.getLogger(__name__)

_MARK: Final = b'"overruled":'
_RULE_RANK: Final = source_rank("rule")
_POLL_S: Final = 1.0


class _Overruled(msgspec.Struct, gc=False):
    """Fields of a decision that are read."""

    transaction_id: str
    card_id: str
    event_time: datetime
    amount_base: float
    action: str
    source: RecordPosition
    overruled: dict[str, list[str]] = {}


_decode: Final = msgspec.json.Decoder(_Overruled).decode


@dataclass(slots=True)
class Suppressed:
    """Sums of what one suppression, or allow list, has overruled. Amounts are in minor units of the base currency."""

    hits: int = 0
    amount_minor: int = 0
    frauds: int = 0
    """Frauds among the transactions that got no alert: those that are missed."""
    fraud_minor: int = 0


@dataclass
class SuppressedHits:
    """Transactions whose alerts were overruled; each counts once, however often its decision is read."""

    rows: dict[tuple[str, int, int], _Overruled] = field(default_factory=dict)

    def add(self, records: Iterable[Record]) -> bool:
        """Take in records of ``decisions``; return whether any was overruled."""
        marked = (record for record in records if record.value is not None and _MARK in record.value)
        found = False
        for _, decision in readable(marked, _decode, not_counted):
            source = decision.source
            self.rows[source.topic, source.partition, source.offset] = decision
            found = True
        return found

    def totals(self, reports: Iterable[LabelReport] = ()) -> dict[str, Suppressed]:
        """Return the sums by what decisions name: a suppression's list and id, or a list.

        Args:
            reports: Labels; of each transaction the one that holds counts.
        """
        held: dict[tuple[str, str], tuple[int, int, int]] = {}
        for report in reports:
            if report.rank != _RULE_RANK:
                order = (report.rank, report.labelled_at_us, report.known)
                held[report.identity] = max(order, held.get(report.identity, order))
        return sums(
            (row.overruled, row.amount_base, held.get((row.card_id, row.transaction_id), (0, 0, -1))[2] == KNOWN_FRAUD,
             row.action == "alert")
            for row in self.rows.values()
        )  # fmt: skip


def sums(overruled: Iterable[tuple[Iterable[str], float, bool, bool]]) -> dict[str, Suppressed]:
    """Return the sums by what has overruled alerts.

    Args:
        overruled: Of each transaction the names of what overruled its alert, its amount in the base currency, and
            whether it is fraud, and got an alert nevertheless.
    """
    found: dict[str, Suppressed] = {}
    for names, amount, is_fraud, alert in overruled:
        minor, missed = round(amount * 100), is_fraud and not alert
        for name in names:
            total = found.setdefault(name, Suppressed())
            total.hits += 1
            total.amount_minor += minor
            total.frauds += missed
            total.fraud_minor += minor * missed
    return found


_Caps = dict[str, tuple[int, ListEntry]]


def _ended(names: Sequence[str], author: ChangeAuthor, changes: ListChanges) -> tuple[list[str], _Caps]:
    """End suppressions; return those that were there, and those that are left."""
    return changes.end(names, author), changes.contents.suppressions()


def keep_caps(
    bootstrap: str, settings: Settings, stopped: Callable[[], bool], *, once: bool = False
) -> Generator[tuple[str, Suppressed], None, None]:
    """Follow ``decisions``, and end suppressions whose suppressed hits have reached their caps.

    Args:
        bootstrap: Address of the cluster.
        settings: Settings of the cluster.
        stopped: Asked again and again; true to end.
        once: End once what was committed before the call is counted.

    Yields:
        The name of each suppression once it was ended, and what it had hidden.
    """
    caps = ListChanges.on(bootstrap, settings).contents.suppressions()
    first_us = min((entry.added_us for _, entry in caps.values()), default=None)
    # No decision by an entry is older than the entry, but clocks differ a little.
    since_ms = -1 if first_us is None else max(first_us - US_PER_HOUR, 0) // US_PER_MS
    starts = {} if since_ms < 0 else starts_at(bootstrap, settings.topic(DECISIONS.name), since_ms, settings=settings)
    follower, hits = TopicFollower(bootstrap, settings, DECISIONS), SuppressedHits()
    known = {*caps}
    """Names that the lists that were read last had, or have no more: a name has one cap."""
    try:
        follower.start(starts)
        is_new = hits.add(follower.read_committed(lambda: None))
        if not once:
            log.info("%d overruled decisions are counted: suppressions that reach a cap are ended", len(hits.rows))
        while True:
            if is_new:
                totals = hits.totals()
                if totals.keys() - known:
                    caps = ListChanges.on(bootstrap, settings).contents.suppressions()
                    known |= {*totals, *caps}
                reached = [name for name in caps if name in totals and totals[name].amount_minor >= caps[name][0]]
                if reached:
                    author = ChangeAuthor("lists caps", "Suppressed hits have reached the cap.")
                    ended, caps = changed(ListChanges.on, bootstrap, settings, partial(_ended, reached, author))
                    yield from ((name, totals[name]) for name in ended)
            if once or stopped():
                return
            is_new = hits.add(follower.poll(_POLL_S))
    finally:
        follower.close()
