"""The checks of rerouting, order and labels on logs that are written by hand."""

import json
from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

import pytest

from tests.chaos.arithmetic import DAY_US, holds, microseconds, partition_of
from tests.chaos.check_examples import labels_are_passed_on
from tests.chaos.check_records import (
    dead_letters_are_complete,
    inputs_are_the_ledger,
    labels_are_accepted_once,
    misplaced_are_rerouted,
    progress_covers_every_input,
    transactions_are_profiled_once,
)
from tests.chaos.checker import check_all
from tests.chaos.load import Load, ledger
from tests.chaos.records import NUMBER_HEADER, ORIGINS, Entry, Logs, Sent
from tests.chaos.run import CARD_READS, Check, Expected, Rules, Run

BATCH = 7
CHECKS = (
    inputs_are_the_ledger,
    labels_are_accepted_once,
    misplaced_are_rerouted,
    progress_covers_every_input,
    transactions_are_profiled_once,
    dead_letters_are_complete,
    labels_are_passed_on,
)
HORIZON_US, GRACE_US = 2 * DAY_US, 7 * DAY_US
RULES = Rules(2, 2, 0.3, DAY_US, HORIZON_US, HORIZON_US, expected=Expected())

Topics = dict[str, list[Entry]]
Headers = tuple[tuple[str, bytes | None], ...]


class Placed(NamedTuple):
    """A transaction that was accepted."""

    merchant: str
    event_us: int
    stream_time_us: int
    amount: float


class Cluster:
    """Topics in memory, and a card agent as slow and obvious as can be."""

    def __init__(self, sent: list[Sent]) -> None:
        self.topics: Topics = defaultdict(list)
        self._read: dict[tuple[str, int], int] = defaultdict(int)
        self._placed: dict[tuple[str, str], Placed] = {}
        self._stream_time_us = [0, 0]
        self._labels: dict[tuple[str, str], list[tuple[str, str, int]]] = defaultdict(list)
        self._early: dict[tuple[str, str], list[Entry]] = defaultdict(list)
        self._sent = {item.number: item for item in sent}
        for record in sent:
            header = ((NUMBER_HEADER, str(record.number).encode()),)
            self.append(record.topic, record.partition, record.key, record.value, header, record.timestamp_ms)

    def append(
        self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: Headers = (), at_ms: int = 0
    ) -> None:
        offset = 2 * sum(entry.partition == partition for entry in self.topics[topic])
        self.topics[topic].append(Entry(topic, partition, offset, at_ms, key, value, headers))

    def work(self) -> Logs:
        """Batches of both partitions in turn until nothing is left."""
        while sum(self._batch(partition) for partition in range(2)):
            pass
        order = {name: tuple(sorted(e, key=lambda e: (e.partition, e.offset))) for name, e in self.topics.items()}
        return Logs(order)

    def _batch(self, partition: int) -> int:
        self._accept(partition)
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
        self._give_up(partition)
        if taken:
            for agent in ("card", "feedback"):
                mine = {t for t in starts if agent == "card" or t == "accepted-labels"}
                batch = {
                    "agent": agent,
                    "starts": {t: starts[t] for t in mine},
                    "ends": {t: ends[t] for t in mine},
                }
                self.append("progress", partition, agent.encode(), json.dumps(batch).encode())
        return len(taken)

    def _accept(self, partition: int) -> None:
        """What the label agent does with the labels that it has not read."""
        there = [e for e in self.topics["labels"] if e.partition == partition]
        for entry in [e for e in there if e.offset >= self._read["labels", partition]][:BATCH]:
            self._read["labels", partition] = entry.offset + 1
            sent = self._sent[int(entry.header(NUMBER_HEADER) or b"")]
            if sent.dead not in (None, "label_without_transaction"):
                self._dead(entry, sent.dead or "")
                continue
            stamps = (("timestamp-ms", entry.timestamp_ms), ("known-at-us", known_at(entry)))
            self._forward(entry, "accepted-labels", sent.card, stamps)

    def _forward(self, entry: Entry, topic: str, card: str, stamps: tuple[tuple[str, int], ...]) -> None:
        place = (("topic", entry.topic), ("partition", entry.partition), ("offset", entry.offset))
        own = tuple((ORIGINS[topic] + name, str(value).encode()) for name, value in (*place, *stamps))
        self.append(topic, partition_of(card, 2), card.encode(), entry.value, (*entry.headers, *own))

    def _take(self, entry: Entry) -> None:
        sent = self._sent[int(entry.header(NUMBER_HEADER) or b"")]
        origin = entry
        if entry.topic in ORIGINS:
            offset = int(entry.header(ORIGINS[entry.topic] + "offset") or b"")
            origin = Entry(
                sent.topic, sent.partition, offset, sent.timestamp_ms, sent.key, sent.value, entry.headers[:1]
            )
        if sent.dead not in (None, "label_without_transaction"):
            self._dead(origin, sent.dead or "")
        elif partition_of(sent.card, 2) != entry.partition:
            self._forward(entry, "rerouted", sent.card, (("timestamp-ms", entry.timestamp_ms),))
        elif sent.topic == "transactions":
            self._transaction(sent, origin, entry)
        else:
            self._label(sent, origin)

    def _transaction(self, sent: Sent, origin: Entry, entry: Entry) -> None:
        key = sent.card, sent.transaction
        before, partition = self._placed.get(key), entry.partition
        stated = json.loads(sent.value or b"")
        if before is not None and self._stream_time_us[partition] - before.stream_time_us <= HORIZON_US:
            if stated["amount"] != before.amount:
                self._dead(origin, "repeat_differs")
            return
        event_us = microseconds(stated["event_time"])
        self._stream_time_us[partition] = max(self._stream_time_us[partition], event_us)
        self._placed[key] = Placed(stated["merchant_id"], event_us, self._stream_time_us[partition], stated["amount"])
        self._labels[key] = []
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
        placed, known_at_us = self._placed.get(key), known_at(origin)
        latest_us = placed.event_us + HORIZON_US + GRACE_US if placed is not None else 0
        if placed is None or not placed.stream_time_us - GRACE_US <= known_at_us <= latest_us:
            self._early[key].append(origin)
            return
        if known_at_us - placed.event_us > HORIZON_US:
            return
        label = json.loads(origin.value or b"")
        reported = self._labels[key]
        before = holds(reported)
        reported.append((label["label"], label["source"], microseconds(label["labelled_at"])))
        if (now := holds(reported)) == before:
            return
        message = {
            "kind": "label",
            "transaction_id": key[1],
            "card_id": key[0],
            "merchant_id": placed.merchant,
            "event_time_us": 0,
            "known": now,
            "known_at_us": known_at_us,
            "source": source(origin),
        }
        self._profile(message)

    def _give_up(self, partition: int) -> None:
        limit_us = self._stream_time_us[partition] - GRACE_US
        for (card, _), waiting in list(self._early.items()):
            if partition_of(card, 2) == partition:
                for origin in [item for item in waiting if known_at(item) < limit_us]:
                    waiting.remove(origin)
                    self._dead(origin, "label_without_transaction")

    def _profile(self, message: dict[str, object]) -> None:
        merchant = str(message["merchant_id"])
        self.append("profiled", partition_of(merchant, 2), merchant.encode(), json.dumps(message).encode())

    def _dead(self, origin: Entry, code: str) -> None:
        place = (("topic", origin.topic), ("partition", origin.partition), ("offset", origin.offset), ("error", code))
        reported = tuple((f"dead-letter-{name}", str(value).encode()) for name, value in place)
        self.append("dead-letters", origin.partition, origin.key, origin.value, (*origin.headers, *reported))


def known_at(label: Entry) -> int:
    return max(microseconds(json.loads(label.value or b"")["labelled_at"]), label.timestamp_ms * 1_000)


def source(entry: Entry) -> dict[str, object]:
    return {"topic": entry.topic, "partition": entry.partition, "offset": entry.offset}


@pytest.fixture(scope="module")
def run() -> Run:
    sent = ledger(Load(3, 1_500, 16.0, 2, horizon_days=2.0), Expected())
    return Run(Cluster(sent).work(), sent, RULES)


def found(run: Run, topic: str, change: Callable[[list[Entry]], list[Entry]], check: Callable[[Run], Check]) -> str:
    result = check(Run(run.logs.changed(topic, change), run.ledger, run.rules))
    assert result.differences
    return "\n".join(result.problems)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_good_logs_pass(run: Run, check: Callable[[Run], Check]) -> None:
    result = check(run)
    assert (result.differences, result.problems) == (0, [])
    assert all(count for what, count in result.compared.items() if what != "forgotten"), result.compared


def test_a_missing_a_doubled_and_a_changed_rerouted_record_are_found(run: Run) -> None:
    assert "was not forwarded" in found(run, "rerouted", lambda e: e[:-1], misplaced_are_rerouted)
    assert "or was before" in found(run, "rerouted", lambda e: [*e, e[-1]], misplaced_are_rerouted)
    changed = found(run, "rerouted", lambda e: [*e[:-1], e[-1]._replace(value=b"{}")], misplaced_are_rerouted)
    assert "value" in changed
    moved = found(
        run, "rerouted", lambda e: [*e[:-1], e[-1]._replace(partition=1 - e[-1].partition)], misplaced_are_rerouted
    )
    assert "partition" in moved


def test_a_missing_a_doubled_and_a_changed_accepted_label_are_found(run: Run) -> None:
    topic, check = "accepted-labels", labels_are_accepted_once
    assert "was not forwarded" in found(run, topic, lambda e: e[:-1], check)
    assert "or was before" in found(run, topic, lambda e: [*e, e[-1]], check)
    early = ("label-known-at-us", b"1")
    assert "known at" in found(run, topic, lambda e: [*e[:-1], e[-1]._replace(headers=(*e[-1].headers, early))], check)


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


def accepted_again(run: Run) -> tuple[int, Entry]:
    """A profiled record, with its place in the topic, of a transaction that had one before."""
    seen: set[tuple[str, str]] = set()
    for i, (entry, message) in enumerate(run.logs.decoded("profiled")):
        key = message["card_id"], message["transaction_id"]
        if message["kind"] == "transaction" and key in seen:
            return i, entry
        seen.add(key)
    raise AssertionError("no transaction was accepted a second time")


def test_a_transaction_behind_the_deduplication_horizon_must_be_accepted_again(run: Run) -> None:
    i, _ = accepted_again(run)
    text = found(run, "profiled", lambda e: e[:i] + e[i + 1 :], transactions_are_profiled_once)
    assert "has 1 profiled records instead of 2" in text


def test_a_repeat_within_the_deduplication_horizon_must_not_be_accepted(run: Run) -> None:
    strict = run.rules._replace(dedup_horizon_us=100 * DAY_US)
    result = transactions_are_profiled_once(Run(run.logs, run.ledger, strict))
    assert any("has 2 profiled records instead of 1" in problem for problem in result.problems)


def test_a_label_behind_the_label_horizon_must_not_be_passed_on(run: Run) -> None:
    strict = run.rules._replace(label_horizon_us=DAY_US)
    assert labels_are_passed_on(Run(run.logs, run.ledger, strict)).differences


def test_a_label_that_is_given_up_too_early_or_too_late_is_found(run: Run) -> None:
    for days in (1, 14):
        other = run.rules._replace(label_grace_us=days * DAY_US)
        assert dead_letters_are_complete(Run(run.logs, run.ledger, other)).differences


def test_a_check_that_compared_nothing_is_a_difference() -> None:
    results = check_all(Logs({}), [], RULES)
    passed = [check.name for check in results if not check.differences]
    assert passed == ["hostile records change nothing", "none but hostile records were quarantined"]


@pytest.mark.parametrize(
    ("topic", "check", "missing"),
    [
        ("rerouted", misplaced_are_rerouted, "was not forwarded"),
        ("dead-letters", dead_letters_are_complete, "has no dead letter"),
        ("progress", progress_covers_every_input, "was never read"),
    ],
)
def test_at_least_once_allows_repeats_and_no_loss(
    run: Run, topic: str, check: Callable[[Run], Check], missing: str
) -> None:
    loose = Run(run.logs, run.ledger, run.rules._replace(exactly_once=False))
    repeated = check(Run(loose.logs.changed(topic, lambda e: [*e, *e[-3:]]), run.ledger, loose.rules))
    assert (repeated.differences, repeated.problems) == (0, [])
    assert missing in found(loose, topic, lambda e: e[1:], check)
