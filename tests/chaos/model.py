"""What must become of every input and of every label, followed record by record in the order that the logs record.

Written from ``docs/wire-contract.md`` and ``docs/models.md``: dictionaries, and one record after the other.
"""

import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any, NamedTuple

from tests.chaos.arithmetic import DAY_US, HOUR_US, SOURCE_RANK, holds, identity, microseconds, sample_position
from tests.chaos.records import Key, Place, Sent, exact
from tests.chaos.run import LogPlace, Run, key_of, log_of, place_of

PRESUMED = "presumed_legitimate"
WITHDRAWN = "withdrawn"
REVIEWERS = ("analyst", "audit")
"""Sources that have looked at a transaction, so that no sample is taken of what they find legitimate."""
UNKNOWN = "label_without_transaction"
DIFFERS = "repeat_differs"


class GivenLabel(NamedTuple):
    """A valid label."""

    place: Place
    """Where it was sent."""
    label: str
    source: str
    labelled_at_us: int
    known_at_us: int
    held: bool = False
    """Whether it came in a surge, so that the online model is not given it."""

    @property
    def triple(self) -> tuple[str, str, int]:
        """What decides which of several holds."""
        return self.label, self.source, self.labelled_at_us


class Accepted(NamedTuple):
    """A transaction that the card agent took in."""

    key: Key
    source: Place
    read: Place
    again: bool
    """Whether one of the same name was accepted before, longer ago than the deduplication horizon."""
    waited_us: int
    """Least clock of the partitions by which labels wait, its own time counted in."""


class Change(NamedTuple):
    """A label that changes what is known, and so is passed on."""

    known: str
    known_at_us: int
    place: Place


@dataclass
class CardFate:
    """What the label and card agents must have made of all inputs."""

    accepted: list[Accepted] = field(default_factory=list)
    dead: dict[Place, str] = field(default_factory=dict)
    """Codes of dead letters, by where the records were sent."""
    changes: dict[Key, list[Change]] = field(default_factory=lambda: defaultdict(list))
    applied: dict[Key, list[GivenLabel]] = field(default_factory=lambda: defaultdict(list))
    """Labels that met a transaction of theirs in time."""
    repeats: int = 0
    too_late: int = 0
    """Labels behind the label horizon that found their transaction."""
    forgotten: int = 0
    """Labels and transactions of something that had been forgotten by then."""


TAKEN_OVER = (
    "merchant_id",
    "event_time",
    "amount_base",
    "features",
    "logit",
    "river_logit",
    "score",
    "versions",
    "log",
)
"""Fields of a row of ``features`` that its examples repeat."""


def taken_over(row: dict[str, Any]) -> str:
    """Digest of what a row of ``features`` and its examples have in common: rows of one source differ by models."""
    return hashlib.sha256(json.dumps([row[name] for name in TAKEN_OVER], sort_keys=True).encode()).hexdigest()[:16]


class ExpectedExample(NamedTuple):
    """An example as it must stand in ``examples``."""

    label: str
    source: str | None
    known_at_us: int
    weight: float
    revision: int
    log: LogPlace
    """Row of ``profiled`` of the decision whose features it has."""
    decided: str
    """Which decision of that row (`taken_over`)."""
    online: tuple[float, str | None, float]
    """Weight for the online model, the label that it undoes, and the weight of that."""


@dataclass
class FeedbackFate:
    """Examples that the feedback agents must have made of labels and ``features``."""

    held: dict[tuple[Key, str, int], set[bool]] = field(default_factory=lambda: defaultdict(set))
    """True for a label of a surge, by card, source and time known. Two alike may differ."""
    examples: dict[Key, list[ExpectedExample]] = field(default_factory=lambda: defaultdict(list))
    given_up: list[GivenLabel] = field(default_factory=list)
    """Labels that no decision came for in time."""
    too_late: int = 0
    not_sampled: int = 0
    forgotten: int = 0


def follow_cards(run: Run) -> CardFate:
    """All partitions of the card agent; computed once for a run."""
    kept: CardFate | None = run.kept.get("cards")
    if kept is not None:
        return kept
    fate = run.kept["cards"] = CardFate()
    # Those that the label agent refuses never come to a card agent.
    fate.dead |= {
        place: sent.dead
        for place, sent in run.sent_at.items()
        if sent.topic == "labels" and sent.dead not in (None, UNKNOWN)
    }
    for (agent, partition), batches in sorted(run.first_batches.items()):
        if agent == "card":
            follower = _CardPartition(run, partition, fate)
            for batch in batches:
                follower.take(batch)
    return fate


def follow_feedback(run: Run) -> FeedbackFate:
    """All partitions of the feedback agent."""
    fate = FeedbackFate()
    decisions: dict[Place, list[dict[str, Any]]] = defaultdict(list)
    for entry, log in run.logs.decoded("features"):
        decisions[entry.place].append(log)
    waited = {item.source: item.waited_us for item in follow_cards(run).accepted}
    for (agent, partition), batches in sorted(run.first_batches.items()):
        if agent == "feedback":
            follower = _FeedbackPartition(run, partition, fate, decisions, waited)
            for batch in batches:
                follower.take(batch)
    return fate


def label_of(place: Place, sent: Sent) -> GivenLabel:
    """A valid label as it was sent."""
    label = exact(sent.value or b"")
    labelled_at_us = microseconds(label["labelled_at"])
    known_at_us = max(labelled_at_us, sent.timestamp_ms * 1_000)
    return GivenLabel(place, label["label"], label["source"], labelled_at_us, known_at_us)


def content_of(sent: Sent) -> tuple[Any, ...]:
    """What a transaction says besides its identity, as far as a repeat must say the same."""
    stated = exact(sent.value or b"")
    time_us, kind = microseconds(stated["event_time"]), stated.get("transaction_type", "purchase")
    return stated.get("merchant_id"), time_us, stated.get("amount"), stated.get("currency"), kind


def sampled(run: Run, key: Key) -> bool:
    """Whether a legitimate transaction becomes an example."""
    return sample_position(identity(*key), "negative") < run.rules.negative_sample_rate


class _Clock:
    """Least newest time of some partitions; one that is 35 days behind the newest does not count."""

    def __init__(self) -> None:
        self._newest: dict[int, int] = {}
        self.reached_us = 0

    def meet(self, partition: int, time_us: int, expected: int) -> None:
        """A record comes; the first one stands for the expected partition too."""
        if not self._newest:
            self._newest[expected] = time_us
        self._newest[partition] = max(time_us, self._newest.get(partition, time_us))
        behind_us = max(self._newest.values()) - 35 * DAY_US
        self.reached_us = max(self.reached_us, min(time for time in self._newest.values() if time > behind_us))


@dataclass
class _Held:
    """A transaction that was accepted, and the labels that have met it."""

    event_us: int
    stream_time_us: int
    """The largest event time of the partition when it was accepted, its own among them."""
    waited_us: int
    content: tuple[Any, ...]
    labels: list[GivenLabel] = field(default_factory=list)


class _CardPartition:
    def __init__(self, run: Run, partition: int, fate: CardFate) -> None:
        self._run, self._rules, self._partition, self._fate = run, run.rules, partition, fate
        self._stream_time_us = self._waited_us = 0
        self._clock = _Clock()
        self._held: dict[Key, _Held] = {}
        self._waiting: dict[Key, list[GivenLabel]] = defaultdict(list)

    def take(self, batch: list[Place]) -> None:
        """One batch: transactions, then labels, then what has waited for too long."""
        inputs = [
            (place, origin, self._run.sent_at.get(origin)) for place in batch for origin in [self._run.origin(place)]
        ]
        here: list[tuple[Place, Place, Sent]] = []
        for place, origin, sent in inputs:
            if sent is None:
                continue  # the check of the inputs tells
            if sent.dead is not None and sent.dead != UNKNOWN:
                self._fate.dead[origin] = sent.dead
            elif self._run.home(sent.card) == self._partition:
                here.append((place, origin, sent))
        accepted = [
            (sent.card, sent.transaction)
            for place, origin, sent in here
            if sent.topic == "transactions" and self._accept(place, origin, sent)
        ]
        for key in accepted:
            if waiting := self._waiting.pop(key, None):
                self._waiting[key] = [label for label in waiting if not self._meets(key, label)]
        for _, origin, sent in here:
            if sent.topic == "labels":
                key, label = (sent.card, sent.transaction), label_of(origin, sent)
                if not self._meets(key, label):
                    self._waiting[key].append(label)
        for label in _too_old(self._waiting, self._waited_us - self._rules.label_grace_us):
            self._fate.dead[label.place] = UNKNOWN

    def _accept(self, place: Place, origin: Place, sent: Sent) -> bool:
        key, event_us = (sent.card, sent.transaction), microseconds(exact(sent.value or b"")["event_time"])
        before = self._held.get(key)
        content = content_of(sent)
        self._clock.meet(origin[1], event_us, self._partition)
        if before is not None and self._stream_time_us - before.stream_time_us <= self._rules.dedup_horizon_us:
            if content == before.content:
                self._fate.repeats += 1
            else:
                self._fate.dead[origin] = DIFFERS
            self._waited_us = max(self._waited_us, min(self._clock.reached_us, self._stream_time_us))
            return False
        self._fate.forgotten += before is not None and self._forgotten(before)
        self._stream_time_us = max(self._stream_time_us, event_us)
        self._waited_us = max(self._waited_us, min(self._clock.reached_us, self._stream_time_us))
        self._held[key] = _Held(event_us, self._stream_time_us, self._waited_us, content)
        self._fate.accepted.append(Accepted(key, origin, place, before is not None, self._waited_us))
        return True

    def _forgotten(self, item: _Held) -> bool:
        """Whole days, as they are forgotten; twice the grace period behind both retention."""
        horizon_us = max(self._rules.dedup_horizon_us, self._rules.label_horizon_us)
        behind_us = self._waited_us - horizon_us - 2 * self._rules.label_grace_us
        return item.stream_time_us // DAY_US < behind_us // DAY_US

    def _meets(self, key: Key, label: GivenLabel) -> bool:
        """Let a label meet its transaction; False where it must wait for one."""
        rules, result = self._rules, self._held.get(key)
        if result is None:
            return False
        if self._forgotten(result):
            self._fate.forgotten += 1
            return False
        latest_us = result.event_us + rules.label_horizon_us + rules.label_grace_us
        since_us = max(result.event_us + HOUR_US, result.waited_us) - rules.label_grace_us
        if not since_us <= label.known_at_us <= latest_us:
            return False
        if label.known_at_us - result.event_us > rules.label_horizon_us:
            self._fate.too_late += 1
            return True
        before = holds(known.triple for known in result.labels)
        result.labels.append(label)
        self._fate.applied[key].append(label)
        now = holds(known.triple for known in result.labels)
        if now != before:
            self._fate.changes[key].append(Change(now, label.known_at_us, label.place))
        return True


def _too_old(waiting: dict[Key, list[GivenLabel]], limit_us: int) -> list[GivenLabel]:
    """Take those out of ``waiting`` that are known since before ``limit_us``."""
    taken: list[GivenLabel] = []
    for key, labels in list(waiting.items()):
        old = [label for label in labels if label.known_at_us < limit_us]
        if old:
            taken += old
            waiting[key] = [label for label in labels if label.known_at_us >= limit_us]
        if not waiting[key]:
            del waiting[key]
    return taken


@dataclass
class _Decided:
    """A decision that feedback keeps, and the labels that it has read of it."""

    event_us: int
    decision: dict[str, Any]
    """The last row of ``features`` that feedback has read, of those of the transaction."""
    labels: list[GivenLabel] = field(default_factory=list)
    revisions: int = 0
    """Examples so far; one counts as emitted where maturity had come before the first label."""
    since_us: int = 0
    """When a label must be known at least, where the transaction came more than an hour late."""
    learned: tuple[str | None, float] = (None, 0.0)
    """Label that the online model was given last, and its weight."""


class _FeedbackPartition:
    def __init__(
        self,
        run: Run,
        partition: int,
        fate: FeedbackFate,
        decisions: Mapping[Place, list[dict[str, Any]]],
        waited: Mapping[Place, int] | None = None,
    ) -> None:
        self._run, self._rules, self._partition, self._fate = run, run.rules, partition, fate
        self._decisions = decisions
        self._waited = waited or {}
        self._clock = _Clock()
        self._stream_time_us = 0
        self._decided: dict[Key, _Decided] = {}
        self._maturing: list[tuple[int, Key]] = []
        self._waiting: dict[Key, list[GivenLabel]] = defaultdict(list)
        self._hours: dict[str, list[tuple[int, bool]]] = defaultdict(list)
        """Hours of each source's labels, and whether they are held."""
        self._label_us, self._supported, self._ahead = -1, 0, list[int]()
        """Newest time of a label, how many labels support it, and the last ones that lie a day ahead of it."""

    def take(self, batch: list[Place]) -> None:
        """One batch: decisions, then labels, then what has matured, then what has waited for too long."""
        filed = [self._file(decision) for place in batch for decision in self._decisions.get(place, ())]
        for key in dict.fromkeys(key for key in filed if key is not None):
            if key in self._waiting and self._kept(key) is not None:
                waiting = self._waiting.pop(key)
                for label in waiting:
                    if self._counts(key, label):
                        self._join(key, label)
                if left := [label for label in waiting if not self._counts(key, label)]:
                    self._waiting[key] = left
        for place in batch:
            origin = self._run.origin(place)
            sent = self._run.sent_at.get(origin)
            if sent is None or sent.topic != "labels" or sent.dead not in (None, UNKNOWN):
                continue
            if self._run.home(sent.card) != self._partition:
                continue
            key, label = (sent.card, sent.transaction), label_of(origin, sent)
            label = label._replace(held=self._surges(label))
            self._fate.held[key, label.source, label.known_at_us].add(label.held)
            if self._kept(key) is None or not self._counts(key, label):
                self._fate.forgotten += key in self._decided and self._kept(key) is None
                self._waiting[key].append(label)
            else:
                self._join(key, label)
        while self._maturing and self._maturing[0][0] <= self._stream_time_us:
            at_us, key = heappop(self._maturing)
            self._mature(key, at_us)
        self._fate.given_up += _too_old(self._waiting, self._clock.reached_us - self._rules.label_grace_us)

    def _surges(self, label: GivenLabel) -> bool:
        """Count a label: it is held beyond 5 times the 99th percentile of the hours with labels in 28 days, or 20."""
        newest = self._newest_hour(label.known_at_us)
        for name in self._hours:
            # What was counted while the clock showed a wrong date.
            self._hours[name] = [item for item in self._hours[name] if item[0] <= newest]
        hour = max(min(label.known_at_us // HOUR_US, newest), newest - 35 * 24)
        hours, held = self._hours[label.source if label.source in SOURCE_RANK else "other"], False
        if hours and hour - min(item for item, _ in hours) >= 7 * 24:
            past = Counter(item for item, is_held in hours if hour - 28 * 24 <= item < hour and not is_held)
            # The lowest count that 99 % of the hours do not exceed.
            usual = sorted(past.values())[math.ceil(0.99 * len(past)) - 1] if past else 0
            held = sum(item == hour and not is_held for item, is_held in hours) >= max(5 * usual, 20)
        hours.append((hour, held))
        return held

    def _newest_hour(self, known_at_us: int) -> int:
        """Return the newest hour: one a day ahead counts after three in a row, and the first three may be wrong."""
        if self._supported == 0 or (self._supported < 3 and known_at_us < self._label_us - DAY_US):
            self._label_us, self._supported, self._ahead = known_at_us, 1, []
        elif known_at_us <= self._label_us + DAY_US:
            self._supported += known_at_us >= self._label_us - DAY_US
            self._label_us, self._ahead = max(self._label_us, known_at_us), []
        else:
            self._ahead.append(known_at_us)
            if len(self._ahead) == 3:
                self._label_us, self._supported, self._ahead = min(self._ahead), 3, []
        return self._label_us // HOUR_US

    def _file(self, decision: dict[str, Any]) -> Key | None:
        key, event_us = key_of(decision), microseconds(decision["event_time"])
        self._stream_time_us = max(self._stream_time_us, event_us)
        waited_us = self._waited.get(place_of(decision["source"]), event_us) if "source" in decision else event_us
        self._clock.meet(log_of(decision)[0], waited_us, -1)
        if event_us // DAY_US < self._forgotten_day():
            self._fate.forgotten += 1
            return None
        if (before := self._kept(key)) is not None:
            before.decision = decision
        else:
            before = self._decided[key] = _Decided(event_us, decision)
        if waited_us > event_us + HOUR_US:
            before.since_us = waited_us - self._rules.label_grace_us
        if sampled(self._run, key):
            heappush(self._maturing, (event_us + self._rules.maturity_us, key))
        return key

    def _forgotten_day(self) -> int:
        """Whole days of event time, as they are forgotten."""
        horizon_us = max(self._rules.label_horizon_us, self._rules.maturity_us)
        return (self._clock.reached_us - horizon_us - self._rules.label_grace_us) // DAY_US

    def _counts(self, key: Key, label: GivenLabel) -> bool:
        item = self._decided[key]
        return label.known_at_us >= max(item.event_us + HOUR_US - self._rules.label_grace_us, item.since_us)

    def _kept(self, key: Key) -> _Decided | None:
        item = self._decided.get(key)
        return None if item is None or item.event_us // DAY_US < self._forgotten_day() else item

    def _join(self, key: Key, label: GivenLabel) -> None:
        result = self._decided[key]
        if label.known_at_us - result.event_us > self._rules.label_horizon_us:
            self._fate.too_late += 1
            return
        kept = sampled(self._run, key)
        if result.revisions == 0 and kept and label.known_at_us > result.event_us + self._rules.maturity_us:
            # By the times alone it was presumed legitimate before.
            result.revisions, result.learned = 1, (PRESUMED, 0.0)
        before = holds(known.triple for known in result.labels)
        result.labels.append(label)
        now = holds(known.triple for known in result.labels)
        if now == before or (now == "none" and result.revisions == 0):
            return
        reviewed = label.source in REVIEWERS
        if now == "legitimate" and result.revisions == 0 and not kept and not reviewed:
            self._fate.not_sampled += 1
            return
        heavy = now == "legitimate" and kept and not reviewed and before != "fraud"
        weight = 1.0 / self._rules.negative_sample_rate if heavy else 1.0
        reported = WITHDRAWN if now == "none" else now
        is_late = label.known_at_us > result.event_us + self._rules.maturity_us
        learned = result.learned
        online = self._online(result, reported, weight, is_late=is_late)
        if label.held:
            result.learned = learned
        self._tell(key, result, reported, label.source, label.known_at_us, weight, online)

    @staticmethod
    def _online(item: _Decided, label: str, weight: float, *, is_late: bool) -> tuple[float, str | None, float]:
        """What a label is to the online model; the rules of the run take all frauds as reported within the maturity."""
        former, former_weight = item.learned
        if former in (PRESUMED, label):
            return 0.0, None, 0.0
        if label == WITHDRAWN or (label == "fraud" and former is None and is_late):
            weight = 0.0
        item.learned = (label, weight) if weight else (None, 0.0)
        return weight, former, former_weight

    def _mature(self, key: Key, at_us: int) -> None:
        result = self._kept(key)
        if result is None or result.revisions or holds(label.triple for label in result.labels) != "none":
            return
        weight = 1.0 / self._rules.negative_sample_rate
        result.learned = (PRESUMED, weight)
        self._tell(key, result, PRESUMED, None, at_us, weight, (weight, None, 0.0))

    def _tell(
        self,
        key: Key,
        item: _Decided,
        label: str,
        source: str | None,
        known_at_us: int,
        weight: float,
        online: tuple[float, str | None, float],
    ) -> None:
        group = log_of(item.decision), taken_over(item.decision)
        self._fate.examples[key].append(
            ExpectedExample(label, source, known_at_us, weight, item.revisions, *group, online)
        )
        item.revisions += 1
