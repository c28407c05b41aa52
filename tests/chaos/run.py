"""What a run leaves for the checks: logs, ledger, the rules that were in force; and what all checks ask of them."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from tests.chaos.arithmetic import DAY_US, microseconds, partition_of
from tests.chaos.records import INPUTS, NUMBER_HEADER, Entry, Key, Logs, Place, Sent, exact

NAMED = 5
"""Differences that a check names; all are counted."""
CARD_READS = ("transactions", "rerouted", "labels")
"""Order of the card agent's topics within a batch."""
FEEDBACK_READS = ("labels", "rerouted", "decisions")


class Expected(NamedTuple):
    """What this release of the pipeline is held to beyond the rest; a release that lacks a part turns it off here."""

    progress: bool = True
    """``progress`` tells every batch of the card and feedback agents."""
    rerouting: bool = True
    """Records in another partition than their card's are passed on through ``rerouted``."""
    partition_horizon: bool = True
    """What lies 37 days behind the newest event of the partition is as if it were not there."""
    rides_out: bool = True
    """No worker ends by itself because of what happens to the broker."""


EXPECTED = Expected()


class Rules(NamedTuple):
    """The settings under which the workers ran."""

    card_partitions: int
    merchant_partitions: int
    negative_sample_rate: float
    maturity_us: int
    label_horizon_us: int
    prefix: str = ""
    label_patience_us: int = 7 * DAY_US
    expected: Expected = EXPECTED


@dataclass
class Check:
    """One thing that was proved, or the differences that say otherwise."""

    name: str
    compared: dict[str, int] = field(default_factory=dict)
    differences: int = 0
    problems: list[str] = field(default_factory=list)

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
        """Every record of the topics that agents read, by place."""
        topics = ("transactions", "labels", "rerouted", "profiled", "decisions")
        return {entry.place: entry for topic in topics for entry in self.logs.entries(topic)}

    @cached_property
    def profiled(self) -> list[tuple[Entry, dict[str, Any]]]:
        """Profiled transactions, in the order of ``profiled``."""
        return [(entry, one) for entry, one in self.logs.decoded("profiled") if one["kind"] == "transaction"]

    @cached_property
    def profiled_labels(self) -> list[tuple[Entry, dict[str, Any]]]:
        """Profiled labels, in the order of ``profiled``."""
        return [(entry, one) for entry, one in self.logs.decoded("profiled") if one["kind"] == "label"]

    @cached_property
    def decision_of(self) -> dict[Key, dict[str, Any]]:
        """Decisions by key; of one that was decided several times, the last."""
        return {key_of(one): one for _, one in self.logs.decoded("decisions")}

    @cached_property
    def reading(self) -> dict[tuple[str, int], list[Place]]:
        """What each agent of several topics read of each partition, in order, as ``progress`` tells it."""
        order: dict[tuple[str, int], list[Place]] = defaultdict(list)
        places: dict[tuple[str, int], list[int]] = defaultdict(list)
        for topic, partition, offset in sorted(self.entry_at):
            places[topic, partition].append(offset)
        for entry, batch in self.logs.decoded("progress"):
            reads = CARD_READS if batch["agent"] == "card" else FEEDBACK_READS
            for topic in reads:
                if topic not in batch["starts"]:
                    continue
                start, end = batch["starts"][topic], batch["ends"][topic]
                offsets = places[topic, entry.partition]
                read = offsets[bisect_left(offsets, start) : bisect_left(offsets, end)]
                order[batch["agent"], entry.partition] += [(topic, entry.partition, offset) for offset in read]
        return order

    @cached_property
    def rank(self) -> dict[Place, int]:
        """When the card agent read each of its inputs, counted within a partition."""
        if self.rules.expected.progress:
            return {
                place: number
                for (agent, _), order in self.reading.items()
                if agent == "card"
                for number, place in enumerate(order)
            }
        places = sorted(place for place in self.entry_at if place[0] in CARD_READS)
        return {place: CARD_READS.index(place[0]) * 10**12 + place[2] for place in places}

    def read_place(self, one: dict[str, Any]) -> Place:
        """Where the card agent read a profiled message: on ``rerouted``, or where it was sent."""
        at = one.get("read") or one["source"]
        return at["topic"], at["partition"], at["offset"]

    @cached_property
    def accepted(self) -> dict[int, list[tuple[Place, dict[str, Any]]]]:
        """Profiled transactions by card partition, in the order in which the card agent read them."""
        by_partition: dict[int, list[tuple[Place, dict[str, Any]]]] = defaultdict(list)
        for _, one in self.profiled:
            place = self.read_place(one)
            by_partition[place[1]].append((place, one))
        for rows in by_partition.values():
            rows.sort(key=lambda row: self.rank.get(row[0], 10**15))
        return by_partition

    def home(self, card: str) -> int:
        """The partition of a card."""
        return partition_of(card, self.rules.card_partitions)

    def labels(self) -> Iterator[tuple[Place, Sent, dict[str, Any], int]]:
        """Valid labels: where they were sent, the ledger's entry, the label, when it was known."""
        for place, sent in sorted(self.sent_at.items(), key=lambda item: item[1].number):
            if sent.topic == "labels" and sent.dead in (None, "label_without_transaction"):
                label = exact(sent.value or b"")
                yield place, sent, label, max(microseconds(label["labelled_at"]), sent.timestamp_ms * 1_000)


def key_of(one: dict[str, Any]) -> Key:
    """Card and transaction of any message."""
    return one["card_id"], one["transaction_id"]


def place_of(source: dict[str, Any]) -> Place:
    """Of a message's ``source``."""
    return source["topic"], source["partition"], source["offset"]
