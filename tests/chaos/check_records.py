"""Every input has exactly one end: inputs, rerouted records, profiled records, decisions, alerts, dead letters."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from tests.chaos.arithmetic import identity, microseconds, partition_of
from tests.chaos.model import DIFFERS, UNKNOWN, Accepted, follow_cards, label_of
from tests.chaos.records import INPUTS, NUMBER_HEADER, ORIGINS, Entry, Key, Place, Sent, exact, origin_of
from tests.chaos.run import CARD_READS, FEEDBACK_READS, Check, LogPlace, Run, key_of, log_of, place_of

AGENT_READS = {"card": CARD_READS, "feedback": FEEDBACK_READS}
REASON = "dead-letter-"
REPEATED_BYTES = 1024 * 1024
"""A dead letter tells size and digest of what is larger."""


def inputs_are_the_ledger(run: Run) -> Check:
    """The producer's own guarantee: what it sent stands in the topics once, byte for byte.

    A broker that was killed forgets a producer of old times, and takes for new what is sent to it again
    (docs/decisions/0004-exactly-once.md): then the last request of before may stand twice.
    """
    check = Check("inputs are what the producer sent")
    sent = {item.number: item for item in run.ledger if not item.hostile}
    check.compared = {"inputs": len(sent)}
    found: dict[tuple[str, int], list[int]] = defaultdict(list)
    for topic in INPUTS:
        for entry in run.logs.entries(topic):
            item = sent.get(int(entry.header(NUMBER_HEADER) or -1))
            if item is None:
                check.differs(f"{entry.place} is in the log and not in the ledger")
                continue
            found[entry.topic, entry.partition].append(item.number)
            if (entry.topic, entry.partition, entry.timestamp_ms, entry.key, entry.value) != (
                item.topic,
                item.partition,
                item.timestamp_ms,
                item.key,
                item.value,
            ):
                check.differs(f"input {item.number} ({item.kind}) stands otherwise at {entry.place}")
    for number in sent.keys() - {number for numbers in found.values() for number in numbers}:
        check.differs(f"input {number} ({sent[number].kind}) was sent and is not in {sent[number].topic}")
    for (topic, partition), numbers in found.items():
        requests, odd = written_again(numbers)
        for number in odd:
            check.differs(f"input {number} ({sent[number].kind}) stands twice in {topic} {partition}")
        if requests:
            check.count("requests written again", requests)
        if requests > (deaths := run.rules.broker_deaths):
            check.differs(f"{topic} {partition}: {requests} requests stand twice, {deaths} brokers ended")
    return check


def written_again(numbers: Sequence[int]) -> tuple[int, list[int]]:
    """Return how many of a partition's requests follow once more behind themselves, and what else stands twice."""
    once: list[int] = []
    places: dict[int, int] = {}
    requests, odd, index = 0, [], 0
    while index < len(numbers):
        number = numbers[index]
        newest = once[places.setdefault(number, len(once)) :]
        if not newest:
            once.append(number)
            index += 1
        elif list(numbers[index : index + len(newest)]) == newest:
            requests += 1
            index += len(newest)
        else:
            odd.append(number)
            index += 1
    return requests, odd


def misplaced_are_rerouted(run: Run) -> Check:
    """Each readable transaction outside its card's partition is passed on once, unchanged, and no other is."""
    check = Check("misplaced transactions are rerouted once")
    wanted = {
        place: sent
        for place, sent in run.sent_at.items()
        if sent.topic == "transactions" and sent.dead is None and run.home(sent.card) != sent.partition
    }
    check.compared = {"rerouted": len(wanted)}
    _forwarded(check, run, "rerouted", wanted)
    return check


def labels_are_accepted_once(run: Run) -> Check:
    """Each readable label goes once, unchanged, to its card's partition, with the time from which it counts."""
    check = Check("readable labels are accepted once")
    wanted = {
        place: sent for place, sent in run.sent_at.items() if sent.topic == "labels" and sent.dead in (None, UNKNOWN)
    }
    check.compared = {"labels": len(wanted)}
    for entry in _forwarded(check, run, "accepted-labels", wanted):
        meant = wanted[origin_of(entry, run.rules.prefix) or entry.place]
        known_at_us = label_of(entry.place, meant).known_at_us
        check.same(f"{entry.place}: known at", entry.header("label-known-at-us"), str(known_at_us).encode())
    return check


def _forwarded(check: Check, run: Run, topic: str, wanted: dict[Place, Sent]) -> list[Entry]:
    """Compare the records of a topic with what was to be forwarded to it; return those that were."""
    found: list[Entry] = []
    there: set[Place] = set()
    for entry in run.logs.entries(topic):
        if entry.hostile:
            continue  # the check of what is hostile tells
        origin = origin_of(entry, run.rules.prefix)
        meant = wanted.get(origin) if origin is not None else None
        if origin is None or meant is None or (origin in there and run.rules.exactly_once):
            check.differs(f"{entry.place} is of {origin}, which is not to be forwarded, or was before")
            continue
        there.add(origin)
        found.append(entry)
        stamp = entry.header(ORIGINS[topic] + "timestamp-ms")
        check.same(f"{entry.place}: value", entry.value, meant.value)
        check.same(f"{entry.place}: key", entry.key, meant.card.encode())
        check.same(f"{entry.place}: partition", entry.partition, run.home(meant.card))
        check.same(f"{entry.place}: timestamp", stamp, str(meant.timestamp_ms).encode())
        check.same(f"{entry.place}: number", entry.header(NUMBER_HEADER), str(meant.number).encode())
    for place in wanted.keys() - there:
        check.differs(f"{place} ({wanted[place].kind}) was not forwarded to {topic}")
    return found


def transactions_are_profiled_once(run: Run) -> Check:
    """Each accepted transaction has one profiled record, made of its first reading; repeats have none.

    One that was sent again behind the deduplication horizon is accepted again, and has another one.
    """
    check = Check("one profiled record a transaction")
    fate = follow_cards(run)
    wanted: dict[Key, list[Accepted]] = defaultdict(list)
    for record in fate.accepted:
        wanted[record.key].append(record)
    check.compared = {
        "transactions": len(wanted),
        "repeats": fate.repeats,
        "accepted_again": sum(item.again for item in fate.accepted),
        "forgotten": fate.forgotten,
    }
    found: dict[Key, list[Place]] = defaultdict(list)
    for entry, message in run.profiled_as_written:
        key, source = key_of(message), place_of(message["source"])
        found[key].append(source)
        check.same(f"{key}: partition of profiled", entry.partition, _home(message["merchant_id"], run))
        meant = run.sent_at.get(source)
        if meant is None or (meant.card, meant.transaction) != key or meant.dead is not None:
            check.differs(f"{key} was profiled from {source}, where no such transaction was sent")
            continue
        _same_transaction(check, run, message, meant)
        check.same(f"{key}: where it was read is of", run.origin(run.read_place(message)), source)
        read = [item.read for item in wanted.get(key, ()) if item.source == source]
        if run.rules.exactly_once and read:
            check.same(f"{key}: where it was read", run.read_place(message), read[0])
    for key in found.keys() | wanted.keys():
        sources, times = found.get(key, []), len(wanted.get(key, ()))
        if run.rules.exactly_once and len(sources) != times:
            check.differs(f"{key} has {len(sources)} profiled records instead of {times}")
        elif run.rules.exactly_once:
            rightly = [item.source for item in wanted[key]]
            check.same(f"{key}: source, of several sendings", sources, rightly)
        elif len(set(sources)) < times:
            check.differs(f"{key} has {len(set(sources))} profiled records instead of {times} or more")
    return check


def _home(merchant: str, run: Run) -> int:
    return partition_of(merchant, run.rules.merchant_partitions)


def _same_transaction(check: Check, run: Run, row: dict[str, Any], sent: Sent) -> None:
    stated, key = exact(sent.value or b""), key_of(row)
    check.same(f"{key}: the producer's own record", row["transaction"], _loose(sent.value))
    check.same(f"{key}: merchant", row["merchant_id"], stated["merchant_id"])
    check.same(f"{key}: event time", row["event_time_us"], microseconds(stated["event_time"]))
    check.same(f"{key}: amount", row["amount_base_minor"], int(stated["amount"] * 100))
    check.same(f"{key}: counts", row["counts"], stated.get("transaction_type", "purchase") in ("purchase", "cash"))


def _loose(value: bytes | None) -> Any:
    return json.loads(value or b"null")


def decisions_are_one_to_one(run: Run) -> Check:
    """Each profiled transaction has one decision, which names its place, and there is none without."""
    check = Check("one decision a profiled transaction")
    there = {entry.log: item for entry, item in run.profiled_as_written}
    waiting = {entry.log: item for entry, item in run.profiled}
    check.compared = {"decisions": len(run.logs.entries("decisions")), "profiled": len(waiting)}
    meant, decided = Counter(key_of(item) for item in waiting.values()), Counter[Key]()
    places: set[LogPlace] = set()
    for entry, decision in run.logs.decoded("decisions"):
        key = key_of(decision)
        decided[key] += 1
        check.same(f"{key}: partition of decisions", entry.partition, run.home(key[0]))
        at = log_of(decision)
        row = there.get(at)
        if row is None or (at in places and run.rules.exactly_once):
            check.differs(f"{key} was decided again, or from profiled {at}, which holds no transaction")
            continue
        places.add(at)
        stated = row["transaction"]
        for name, found, wanted in (
            ("key", key, key_of(row)),
            ("source", decision["source"], row["source"]),
            ("merchant", decision["merchant_id"], row["merchant_id"]),
            ("case", (decision["case_id"], decision["case_sequence"]), (row["case_id"], row["case_sequence"])),
            ("event time", microseconds(decision["event_time"]), row["event_time_us"]),
            ("amount", decision["amount"], stated["amount"]),
            ("amount in the base currency", decision["amount_base"], row["amount_base_minor"] / 100),
            ("ingestion", decision["ingested_at"], row["ingested_at"]),
        ):
            check.same(f"{key}: {name} of the decision", found, wanted)
    for at in waiting.keys() - places:
        check.differs(f"{key_of(waiting[at])} was profiled and not decided")
    for key, count in decided.items():
        if count > meant[key] and run.rules.exactly_once:
            check.differs(f"{key} has {count} decisions, and {meant[key]} profiled records")
    return check


def alerts_are_one_to_one(run: Run) -> Check:
    """Each decision to alert has one alert, which repeats it, and no other decision has one."""
    check = Check("one alert a decision to alert")
    meant = {log: ones for log, all_of in run.decisions_at.items() if (ones := [o for o in all_of if is_alert(o)])}
    check.compared = {"alerts": len(run.logs.entries("alerts")), "decisions_to_alert": len(meant)}
    places: set[LogPlace] = set()
    same = ["case_id", "case_sequence", "merchant_id", "event_time", "amount", "currency", "amount_base", "score"]
    same += ["base_currency", "model_scores", "threshold", "selection", "versions", "source", "log"]
    for _, alert in run.logs.decoded("alerts"):
        key = key_of(alert)
        log = log_of(alert)
        decisions = [item for item in meant.get(log, ()) if key_of(item) == key]
        if not decisions or (log in places and run.rules.exactly_once):
            check.differs(f"{key} has an alert too many")
            continue
        places.add(log)
        source = alert["source"]
        alert_id = f"{identity(*key):016x}-{source['partition']}-{source['offset']}"
        check.same(f"{key}: alert_id", alert["alert_id"], alert_id)
        # Under at-least-once delivery a second decision may be one of other models.
        decision = next(
            (decision for decision in decisions if all(alert[name] == decision[name] for name in same)), decisions[-1]
        )
        check.same(f"{key}: severity", alert["severity"], round(decision["score"] * decision["amount_base"], 2))
        for name in same:
            check.same(f"{key}: {name} of the alert", alert[name], decision[name])
        if not alert["reasons"]:
            check.differs(f"{key}: an alert without a reason")
    for log in meant.keys() - places:
        check.differs(f"{key_of(meant[log][0])} was decided to be an alert and has none")
    return check


def is_alert(decision: dict[str, Any]) -> bool:
    """Whether an analyst must see it."""
    return bool(decision["action"] == "alert")


def dead_letters_are_complete(run: Run) -> Check:
    """Each input that cannot be accepted becomes a dead letter once, its bytes intact; no other is."""
    check = Check("dead letters are complete")
    wanted = follow_cards(run).dead
    places: set[Place] = set()
    check.compared = {
        "dead_letters": len(wanted),
        "labels_without_transaction": sum(code == UNKNOWN for code in wanted.values()),
        "repeats_that_differ": sum(code == DIFFERS for code in wanted.values()),
    }
    hostile = {(sent.topic, sent.partition, sent.offset) for sent in run.ledger if sent.hostile}
    for entry in run.logs.entries("dead-letters"):
        letter = dead_letter(entry, run.rules.prefix)
        place = letter.place
        if place in hostile:
            continue  # the check of what is hostile tells
        if place not in wanted or (place in places and run.rules.exactly_once):
            check.differs(f"{entry.place} is a dead letter of {place}, which was to be accepted, or had one")
            continue
        places.add(place)
        meant = run.sent_at[place]
        check.same(f"{place}: code of the dead letter", letter.error, wanted[place])
        _same_content(check, f"{place}: value of the dead letter", entry, meant.value)
        check.same(f"{place}: key of the dead letter", entry.key, meant.key)
        check.same(f"{place}: number of the dead letter", entry.header(NUMBER_HEADER), str(meant.number).encode())
    for place in wanted.keys() - places:
        check.differs(f"{place} ({run.sent_at[place].kind}) has no dead letter ({wanted[place]})")
    return check


class DeadLetter(NamedTuple):
    """What the headers of a dead letter say."""

    place: Place
    end: int
    """Offset behind a range; -1 for a single record."""
    agent: str
    error: str


def dead_letter(entry: Entry, prefix: str) -> DeadLetter:
    """Read the headers of a record of ``dead-letters``."""
    reason = {name.removeprefix(REASON): value for name, value in entry.headers if name.startswith(REASON)}
    topic, agent, error = ((reason.get(name) or b"").decode() for name in ("topic", "stage", "error"))
    partition, offset, end = (int(reason.get(name) or -1) for name in ("partition", "offset", "end"))
    return DeadLetter((topic.removeprefix(prefix), partition, offset), end, agent, error)


def _same_content(check: Check, what: str, letter: Entry, value: bytes | None) -> None:
    """The value itself or, where it is too large to be repeated, its size and digest."""
    if letter.value is None and value is not None and len(value) > REPEATED_BYTES:
        check.same(f"{what}: size", letter.header(f"{REASON}value-bytes"), str(len(value)).encode())
        digest = hashlib.sha256(value).hexdigest().encode()
        check.same(f"{what}: digest", letter.header(f"{REASON}value-sha256"), digest)
    else:
        check.same(what, letter.value, value)


def progress_covers_every_input(run: Run) -> Check:
    """The batches that ``progress`` tells read every record of their topics once, in order."""
    check = Check("progress tells every batch")
    for agent, topics in AGENT_READS.items():
        for partition in range(run.rules.card_partitions):
            order = run.reading.get((agent, partition), [])
            there = {place for place in run.entry_at if place[0] in topics and place[1] == partition}
            check.compared[agent] = check.compared.get(agent, 0) + len(there)
            if len(order) != len(set(order)) and run.rules.exactly_once:
                check.differs(f"{agent} partition {partition}: {len(order) - len(set(order))} records were read twice")
            for place in sorted(there - set(order)):
                check.differs(f"{agent}: {place} was never read")
            for topic in topics:
                offsets = [offset for name, _, offset in order if name == topic]
                if run.rules.exactly_once and offsets != sorted(offsets):
                    check.differs(f"{agent} partition {partition}: {topic} was read out of order")
    return check
