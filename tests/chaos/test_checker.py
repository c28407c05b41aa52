"""The checks of rerouting, order and labels on logs that are written by hand."""

import json
from collections import defaultdict
from collections.abc import Callable

import pytest

from tests.chaos.arithmetic import DAY_US, holds, microseconds, partition_of
from tests.chaos.check_lessons import labels_are_passed_on
from tests.chaos.check_records import (
    dead_letters_are_complete,
    inputs_are_the_ledger,
    misplaced_are_rerouted,
    progress_covers_every_input,
    transactions_are_profiled_once,
)
from tests.chaos.load import Load, ledger
from tests.chaos.records import NUMBER_HEADER, Entry, Logs, Sent
from tests.chaos.run import CARD_READS, Check, Expected, Rules, Run

BATCH = 7
CHECKS = (
    inputs_are_the_ledger,
    misplaced_are_rerouted,
    progress_covers_every_input,
    transactions_are_profiled_once,
    dead_letters_are_complete,
    labels_are_passed_on,
)
RULES = Rules(2, 2, 0.3, DAY_US, 120 * DAY_US, expected=Expected())

Topics = dict[str, list[Entry]]
Headers = tuple[tuple[str, bytes | None], ...]


class Cluster:
    """Topics in memory, and a card agent as slow and obvious as can be."""

    def __init__(self, sent: list[Sent]) -> None:
        self.topics: Topics = defaultdict(list)
        self._read: dict[tuple[str, int], int] = defaultdict(int)
        self._placed: dict[tuple[str, str], str] = {}
        self._labels: dict[tuple[str, str], list[tuple[str, str, int]]] = defaultdict(list)
        self._early: dict[tuple[str, str], list[Entry]] = defaultdict(list)
        self._sent = {one.number: one for one in sent}
        for one in sent:
            header = ((NUMBER_HEADER, str(one.number).encode()),)
            self.append(one.topic, one.partition, one.key, one.value, header, one.timestamp_ms)

    def append(
        self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: Headers = (), at_ms: int = 0
    ) -> None:
        offset = 2 * sum(entry.partition == partition for entry in self.topics[topic])
        self.topics[topic].append(Entry(topic, partition, offset, at_ms, key, value, headers))

    def work(self) -> Logs:
        """Batches of both partitions in turn until nothing is left."""
        while sum(self._batch(partition) for partition in range(2)):
            pass
        # Whoever told nothing yet is given up.
        for waiting in self._early.values():
            for origin in waiting:
                self._dead(origin, "label_without_transaction")
        order = {name: tuple(sorted(e, key=lambda e: (e.partition, e.offset))) for name, e in self.topics.items()}
        return Logs(order)

    def _batch(self, partition: int) -> int:
        starts, ends, taken = {}, {}, []
        for topic in CARD_READS:
            there = [e for e in self.topics[topic] if e.partition == partition]
            new = [e for e in there if e.offset >= self._read[topic, partition]][:BATCH]
            if new:
                starts[topic], ends[topic] = new[0].offset, new[-1].offset + 1
                self._read[topic, partition] = ends[topic]
                taken += new
        for entry in taken:
            self._take(entry)
        if taken:
            for agent in ("card", "feedback"):
                mine = {t for t in starts if agent == "card" or t != "transactions"}
                batch = {
                    "agent": agent,
                    "starts": {t: starts[t] for t in mine},
                    "ends": {t: ends[t] for t in mine},
                }
                self.append("progress", partition, agent.encode(), json.dumps(batch).encode())
        return len(taken)

    def _take(self, entry: Entry) -> None:
        sent = self._sent[int(entry.header(NUMBER_HEADER) or b"")]
        origin = entry
        if entry.topic == "rerouted":
            offset = int(entry.header("rerouted-offset") or b"")
            origin = Entry(
                sent.topic, sent.partition, offset, sent.timestamp_ms, sent.key, sent.value, entry.headers[:1]
            )
        if sent.dead not in (None, "label_without_transaction"):
            self._dead(origin, sent.dead or "")
        elif (home := partition_of(sent.card, 2)) != entry.partition:
            place = (("topic", entry.topic), ("partition", entry.partition), ("offset", entry.offset))
            told = tuple((f"rerouted-{name}", str(value).encode()) for name, value in place)
            told += (("rerouted-timestamp-ms", str(entry.timestamp_ms).encode()),)
            self.append("rerouted", home, sent.card.encode(), entry.value, (*entry.headers, *told))
        elif sent.topic == "transactions":
            self._transaction(sent, origin, entry)
        else:
            self._label(sent, origin)

    def _transaction(self, sent: Sent, origin: Entry, entry: Entry) -> None:
        key = sent.card, sent.transaction
        if key in self._placed:
            return
        stated = json.loads(sent.value or b"")
        self._placed[key] = stated["merchant_id"]
        message = {
            "kind": "transaction",
            "transaction_id": key[1],
            "card_id": key[0],
            "merchant_id": stated["merchant_id"],
            "event_time_us": microseconds(stated["event_time"]),
            "amount_base_minor": round(stated["amount"] * 100),
            "counts": stated.get("transaction_type", "purchase") in ("purchase", "cash"),
            "source": source(origin),
            "read": source(entry) if entry.topic == "rerouted" else None,
            "transaction": stated,
        }
        self._profile(message)
        for early in self._early.pop(key, ()):
            self._label(sent, early)

    def _label(self, sent: Sent, origin: Entry) -> None:
        key = sent.card, sent.transaction
        if key not in self._placed:
            self._early[key].append(origin)
            return
        label = json.loads(origin.value or b"")
        told = self._labels[key]
        before = holds(told)
        told.append((label["label"], label["source"], microseconds(label["labelled_at"])))
        if (now := holds(told)) == before:
            return
        known_at_us = max(told[-1][2], origin.timestamp_ms * 1_000)
        message = {
            "kind": "label",
            "transaction_id": key[1],
            "card_id": key[0],
            "merchant_id": self._placed[key],
            "event_time_us": 0,
            "known": now,
            "known_at_us": known_at_us,
            "source": source(origin),
        }
        self._profile(message)

    def _profile(self, message: dict[str, object]) -> None:
        merchant = str(message["merchant_id"])
        self.append("profiled", partition_of(merchant, 2), merchant.encode(), json.dumps(message).encode())

    def _dead(self, origin: Entry, code: str) -> None:
        place = (("topic", origin.topic), ("partition", origin.partition), ("offset", origin.offset), ("error", code))
        told = tuple((f"dead-letter-{name}", str(value).encode()) for name, value in place)
        self.append("dead-letters", origin.partition, origin.key, origin.value, (*origin.headers, *told))


def source(entry: Entry) -> dict[str, object]:
    return {"topic": entry.topic, "partition": entry.partition, "offset": entry.offset}


@pytest.fixture(scope="module")
def run() -> Run:
    sent = ledger(Load(3, 1_500, 12.0, 2), Expected())
    # A label that waits in vain at the very end is given up only later: not here.
    last_ms = max(one.timestamp_ms for one in sent if one.topic == "transactions")
    sent = [one for one in sent if one.kind != "unknown" or one.timestamp_ms < last_ms - 8 * DAY_US // 1_000]
    return Run(Cluster(sent).work(), sent, RULES)


def found(run: Run, topic: str, change: Callable[[list[Entry]], list[Entry]], check: Callable[[Run], Check]) -> str:
    result = check(Run(run.logs.changed(topic, change), run.ledger, run.rules))
    assert result.differences
    return "\n".join(result.problems)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_good_logs_pass(run: Run, check: Callable[[Run], Check]) -> None:
    result = check(run)
    assert (result.differences, result.problems) == (0, [])
    assert all(result.compared.values()), result.compared


def test_a_missing_a_doubled_and_a_changed_rerouted_record_are_found(run: Run) -> None:
    assert "was not rerouted" in found(run, "rerouted", lambda e: e[:-1], misplaced_are_rerouted)
    assert "or was before" in found(run, "rerouted", lambda e: [*e, e[-1]], misplaced_are_rerouted)
    changed = found(run, "rerouted", lambda e: [*e[:-1], e[-1]._replace(value=b"{}")], misplaced_are_rerouted)
    assert "value" in changed
    moved = found(
        run, "rerouted", lambda e: [*e[:-1], e[-1]._replace(partition=1 - e[-1].partition)], misplaced_are_rerouted
    )
    assert "partition" in moved


def test_a_batch_that_progress_lacks_or_tells_twice_is_found(run: Run) -> None:
    assert "was never read" in found(run, "progress", lambda e: e[1:], progress_covers_every_input)
    assert "read twice" in found(run, "progress", lambda e: [*e, e[0]], progress_covers_every_input)


def test_a_repeat_that_was_taken_for_the_first_is_found(run: Run) -> None:
    def swap(entries: list[Entry]) -> list[Entry]:
        places = defaultdict(list)
        for place, sent in run.sent_at.items():
            if sent.topic == "transactions" and sent.dead is None:
                places[sent.card, sent.transaction].append(place)
        for i, entry in enumerate(entries):
            message = json.loads(entry.value or b"")
            here = (message["source"]["topic"], message["source"]["partition"], message["source"]["offset"])
            others = [p for p in places[message["card_id"], message["transaction_id"]] if p != here]
            if message["kind"] == "transaction" and others and message["read"] is None and others[0][1] == here[1]:
                message["source"]["offset"] = others[0][2]
                return [*entries[:i], entry._replace(value=json.dumps(message).encode()), *entries[i + 1 :]]
        raise AssertionError("no transaction was sent twice to one partition")

    assert "of several sendings" in found(run, "profiled", swap, transactions_are_profiled_once)
