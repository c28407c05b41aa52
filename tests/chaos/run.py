"""Results of a run for the checks: logs, ledger, active processing configs; and questions that all checks ask."""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from tests.chaos.arithmetic import DAY_US, partition_of
from tests.chaos.records import INPUTS, NUMBER_HEADER, ORIGINS, Entry, Key, Logs, Place, Sent, origin_of

LogPlace = tuple[int, int, int]
"""Partition, offset and row on ``profiled``."""
NAMED = 5
"""Differences that a check names; all are counted."""
CARD_READS = ("transactions", "rerouted", "accepted-labels")
"""Order of the card agent's topics within a batch."""
FEEDBACK_READS = ("accepted-labels", "features")


class Rules(NamedTuple):
    """The settings under which the workers ran."""

    card_partitions: int
    merchant_partitions: int
    negative_sample_rate: float
    maturity_us: int
    label_horizon_us: int
    dedup_horizon_us: int
    prefix: str = ""
    label_grace_us: int = 7 * DAY_US
    exactly_once: bool = True
    """Else at least once: what is repeated is allowed, what is lost or wrong is not."""
    hasty: bool = False
    """True where so many days pass in a second that agents give labels up before transactions or decisions come."""
    broker_deaths: int = 0
    """Number of times that the run has ended a broker."""


@dataclass
class Check:
    """One thing that was proved, or the differences that say otherwise."""

    name: str
    compared: dict[str, int] = field(default_factory=dict)
    differences: int = 0
    problems: list[str] = field(default_factory=list)

    def count(self, what: str, more: int = 1) -> None:
        """Something was compared; `checker.check_all` takes a count of zero for a difference."""
        self.compared[what] = self.compared.get(what, 0) + more

    def differs(self, text: str) -> None:
        """Count a difference; the first few are told."""
        self.differences += 1
        if len(self.problems) < NAMED:
            self.problems.append(text)

    def same(self, what: str, found: object, wanted: object) -> None:
        """Count a difference where ``found`` is not ``wanted``."""
        if found != wanted:
            self.differs(f"{what}: {_short(found)} instead of {_short(wanted)}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:110]}... ({len(text)} characters)"


@dataclass
class Run:
    """Logs, ledger and rules, with what several checks derive from them."""

    logs: Logs
    ledger: Sequence[Sent]
    rules: Rules
    kept: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """What was derived at some expense, for the checks that follow."""

    @cached_property
    def sent_at(self) -> dict[Place, Sent]:
        """Ledger entries by where the log has them; the completeness of the inputs is a check of its own."""
        by_number = {sent.number: sent for sent in self.ledger}
        found = {}
        for topic in INPUTS:
            for entry in self.logs.entries(topic):
                number = entry.header(NUMBER_HEADER)
                if number is not None and (sent := by_number.get(int(number))) is not None:
                    found[entry.place] = sent
        return found

    @cached_property
    def entry_at(self) -> dict[Place, Entry]:
        """Every record of the topics that agents read, by place; of a block its last row."""
        topics = ("transactions", "labels", "rerouted", "accepted-labels", "profiled", "features")
        return {entry.place: entry for topic in topics for entry in self.logs.entries(topic)}

    @cached_property
    def profiled_as_written(self) -> list[tuple[Entry, dict[str, Any]]]:
        """Profiled transactions, in the order of ``profiled``."""
        return [(entry, log) for entry, log in self.logs.decoded("profiled") if log["kind"] == "transaction"]

    @cached_property
    def profiled(self) -> list[tuple[Entry, dict[str, Any]]]:
        """Profiled transactions that are to be decided: under at-least-once delivery without what was written again.

        That is a row of which the card agent's input does not lie behind those of the rows before it in its partition
        of ``profiled``, however the rows are cut into blocks.
        """
        if self.rules.exactly_once:
            return self.profiled_as_written
        last: dict[tuple[int, str, int], int] = defaultdict(lambda: -1)
        found = []
        for entry, item in self.profiled_as_written:
            topic, partition, offset = self.read_place(item)
            if offset > last[entry.partition, topic, partition]:
                last[entry.partition, topic, partition] = offset
                found.append((entry, item))
        return found

    @cached_property
    def profiled_labels(self) -> list[tuple[Entry, dict[str, Any]]]:
        """Profiled labels, in the order of ``profiled``."""
        return [(entry, log) for entry, log in self.logs.decoded("profiled") if log["kind"] == "label"]

    @cached_property
    def decisions_at(self) -> dict[LogPlace, list[dict[str, Any]]]:
        """Decisions by the row of ``profiled`` that they were made from."""
        return self._by_log("decisions")

    @cached_property
    def features_at(self) -> dict[LogPlace, list[dict[str, Any]]]:
        """Rows of ``features`` by the row of ``profiled`` that the decision was made from."""
        return self._by_log("features")

    def _by_log(self, topic: str) -> dict[LogPlace, list[dict[str, Any]]]:
        found: dict[LogPlace, list[dict[str, Any]]] = defaultdict(list)
        for _, message in self.logs.decoded(topic):
            found[log_of(message)].append(message)
        return found

    @cached_property
    def batches(self) -> dict[tuple[str, int], list[list[Place]]]:
        """What each agent of several topics read of each partition, batch by batch, as ``progress`` tells it."""
        batches: dict[tuple[str, int], list[list[Place]]] = defaultdict(list)
        places: dict[tuple[str, int], list[int]] = defaultdict(list)
        for topic, partition, offset in sorted(self.entry_at):
            places[topic, partition].append(offset)
        for entry, log in self.logs.decoded("progress"):
            batch: list[Place] = []
            for topic in CARD_READS if log["agent"] == "card" else FEEDBACK_READS:
                if topic not in log["starts"]:
                    continue
                start, end = log["starts"][topic], log["ends"][topic]
                offsets = places[topic, entry.partition]
                read = offsets[bisect_left(offsets, start) : bisect_left(offsets, end)]
                batch += [(topic, entry.partition, offset) for offset in read]
            batches[log["agent"], entry.partition].append(batch)
        return batches

    @cached_property
    def first_batches(self) -> dict[tuple[str, int], list[list[Place]]]:
        """The same, each record where it was read first: no other than `batches` where nothing was read again."""
        first: dict[tuple[str, int], list[list[Place]]] = {}
        for reader, batches in self.batches.items():
            seen: set[Place] = set()
            first[reader] = []
            for batch in batches:
                first[reader].append([place for place in batch if place not in seen])
                seen.update(batch)
        return first

    @cached_property
    def reading(self) -> dict[tuple[str, int], list[Place]]:
        """What each agent of several topics read of each partition, in order; what it read again, again."""
        return {reader: [place for batch in batches for place in batch] for reader, batches in self.batches.items()}

    @cached_property
    def cards_read_again(self) -> set[str]:
        """Cards of which the card agent read something twice: in which order it took them is not known for certain."""
        cards: set[str] = set()
        for (agent, _), order in self.reading.items():
            if agent == "card" and len(order) != len(set(order)):
                again = [place for place, times in Counter(order).items() if times > 1]
                cards |= {sent.card for place in again if (sent := self.sent_at.get(self.origin(place))) is not None}
        return cards

    @cached_property
    def transactions_read_again(self) -> set[Key]:
        """Transactions of which the feedback agent read something twice: how often it told them is not known."""
        again = {
            place
            for (agent, _), order in self.reading.items()
            if agent == "feedback" and len(order) != len(set(order))
            for place, times in Counter(order).items()
            if times > 1
        }
        if not again:
            return set()
        sent = [self.sent_at[origin] for place in again if (origin := self.origin(place)) in self.sent_at]
        decided = {key_of(log) for entry, log in self.logs.decoded("features") if entry.place in again}
        return decided | {(item.card, item.transaction) for item in sent}

    @cached_property
    def _origins(self) -> dict[Place, Place]:
        found = {e.place: origin_of(e, self.rules.prefix) for topic in ORIGINS for e in self.logs.entries(topic)}
        return {place: origin for place, origin in found.items() if origin is not None}

    def origin(self, place: Place) -> Place:
        """Where what was read at ``place`` was sent to: another place for what was passed on."""
        return self._origins.get(place, place)

    @cached_property
    def rank(self) -> dict[Place, int]:
        """When the card agent read each of its inputs, counted within a partition."""
        return {
            place: number
            for (agent, _), batches in self.first_batches.items()
            if agent == "card"
            for number, place in enumerate(place for batch in batches for place in batch)
        }

    def read_place(self, row: dict[str, Any]) -> Place:
        """Where the card agent read a profiled message: on ``rerouted``, or where it was sent."""
        at = row.get("read") or row["source"]
        return at["topic"], at["partition"], at["offset"]

    @cached_property
    def accepted(self) -> dict[int, list[tuple[Place, Entry, dict[str, Any]]]]:
        """Profiled transactions by card partition, with where they were read, in the order in which they were read."""
        by_partition: dict[int, list[tuple[Place, Entry, dict[str, Any]]]] = defaultdict(list)
        for entry, item in self.profiled:
            place = self.read_place(item)
            by_partition[place[1]].append((place, entry, item))
        for rows in by_partition.values():
            rows.sort(key=lambda row: self.rank.get(row[0], 10**15))
        return by_partition

    def home(self, card: str) -> int:
        """The partition of a card."""
        return partition_of(card, self.rules.card_partitions)


def key_of(row: dict[str, Any]) -> Key:
    """Card and transaction of any message."""
    return row["card_id"], row["transaction_id"]


def log_of(row: dict[str, Any]) -> LogPlace:
    """Partition, offset and row in ``profiled`` that a decision, an alert or an example names."""
    log = row["log"]
    return log["partition"], log["offset"], log.get("row", 0)


def place_of(source: dict[str, Any]) -> Place:
    """Of a message's ``source``."""
    return source["topic"], source["partition"], source["offset"]
