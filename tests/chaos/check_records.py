"""Every input has exactly one end: inputs, rerouted records, profiled records, decisions, alerts, dead letters."""

import json
from collections import Counter, defaultdict
from typing import Any

from tests.chaos.arithmetic import identity, microseconds, partition_of
from tests.chaos.records import INPUTS, NUMBER_HEADER, ORIGIN, Entry, Key, Place, Sent, exact, rerouted_origin
from tests.chaos.run import Check, Run, key_of, place_of

AGENT_READS = {"card": ("transactions", "rerouted", "labels"), "feedback": ("labels", "rerouted", "decisions")}
REASON = "dead-letter-"


def inputs_are_the_ledger(run: Run) -> Check:
    """The producer's own guarantee: what it sent stands in the topics once, byte for byte."""
    check = Check("inputs are what the producer sent")
    found: dict[int, Entry] = {}
    for topic in INPUTS:
        for entry in run.logs.entries(topic):
            number = entry.header(NUMBER_HEADER)
            if number is None or int(number) in found:
                check.differs(f"{entry.place} is in the log and was sent otherwise or before")
                continue
            found[int(number)] = entry
    for sent in run.ledger:
        there = found.pop(sent.number, None)
        if there is None:
            check.differs(f"input {sent.number} ({sent.kind}) was sent and is not in {sent.topic}")
        elif (there.topic, there.partition, there.timestamp_ms, there.key, there.value) != (
            sent.topic,
            sent.partition,
            sent.timestamp_ms,
            sent.key,
            sent.value,
        ):
            check.differs(f"input {sent.number} ({sent.kind}) stands otherwise at {there.place}")
    for left in found:
        check.differs(f"input {left} is in the log and not in the ledger")
    check.compared = {"inputs": len(run.ledger)}
    return check


def misplaced_are_rerouted(run: Run) -> Check:
    """Each readable record outside its card's partition is passed on once, unchanged, and no other is."""
    check = Check("misplaced records are rerouted once")
    wanted: dict[Place, Sent] = {}
    if run.rules.expected.rerouting:
        for place, sent in run.sent_at.items():
            if sent.dead in (None, "label_without_transaction") and run.home(sent.card) != sent.partition:
                wanted[place] = sent
    check.compared = {"rerouted": len(wanted)}
    for entry in run.logs.entries("rerouted"):
        origin = rerouted_origin(entry, run.rules.prefix)
        meant = wanted.pop(origin, None) if origin is not None else None
        if meant is None:
            check.differs(f"{entry.place} is of {origin}, which is not to be rerouted, or was before")
            continue
        check.same(f"{entry.place}: value", entry.value, meant.value)
        check.same(f"{entry.place}: key", entry.key, meant.card.encode())
        check.same(f"{entry.place}: partition", entry.partition, run.home(meant.card))
        check.same(f"{entry.place}: timestamp", entry.header(ORIGIN + "timestamp-ms"), str(meant.timestamp_ms).encode())
        check.same(f"{entry.place}: number", entry.header(NUMBER_HEADER), str(meant.number).encode())
    for place, sent in wanted.items():
        check.differs(f"{place} ({sent.kind}) lies outside its card's partition and was not rerouted")
    return check


def transactions_are_profiled_once(run: Run) -> Check:
    """Each accepted transaction has one profiled record, made of its first reading; repeats have none."""
    check = Check("one profiled record a transaction")
    candidates: dict[Key, list[tuple[Place, Sent]]] = defaultdict(list)
    for place, sent in run.sent_at.items():
        if sent.topic == "transactions" and sent.dead is None:
            candidates[sent.card, sent.transaction].append((place, sent))
    passed_on = [(rerouted_origin(entry, run.rules.prefix), entry.place) for entry in run.logs.entries("rerouted")]
    read_as: dict[Place, Place] = {origin: place for origin, place in passed_on if origin is not None}
    check.compared = {"transactions": len(candidates), "repeats": sum(len(c) - 1 for c in candidates.values())}
    seen: Counter[Key] = Counter()
    for entry, one in run.profiled:
        key = key_of(one)
        seen[key] += 1
        check.same(f"{key}: partition of profiled", entry.partition, _home(one["merchant_id"], run))
        source = place_of(one["source"])
        meant = dict(candidates.get(key, ())).get(source)
        if meant is None:
            check.differs(f"{key} was profiled from {source}, where no such transaction was sent")
            continue
        _same_transaction(check, run, one, meant)
        if len(candidates[key]) > 1:
            first = min((_rank(run, read_as.get(place, place)), place) for place, _ in candidates[key])[1]
            check.same(f"{key}: source, of several sendings", source, first)
        check.same(f"{key}: where it was read", run.read_place(one), read_as.get(source, source))
    for key in candidates:
        if seen[key] != 1:
            check.differs(f"{key} has {seen[key]} profiled records")
    return check


def _rank(run: Run, place: Place) -> int:
    return run.rank.get(place, 10**15)


def _home(merchant: str, run: Run) -> int:
    return partition_of(merchant, run.rules.merchant_partitions)


def _same_transaction(check: Check, run: Run, one: dict[str, Any], sent: Sent) -> None:
    stated, key = exact(sent.value or b""), key_of(one)
    check.same(f"{key}: the producer's own record", one["transaction"], _loose(sent.value))
    check.same(f"{key}: merchant", one["merchant_id"], stated["merchant_id"])
    check.same(f"{key}: event time", one["event_time_us"], microseconds(stated["event_time"]))
    check.same(f"{key}: amount", one["amount_base_minor"], int(stated["amount"] * 100))
    check.same(f"{key}: counts", one["counts"], stated.get("transaction_type", "purchase") in ("purchase", "cash"))


def _loose(value: bytes | None) -> Any:
    return json.loads(value or b"null")


def decisions_are_one_to_one(run: Run) -> Check:
    """Each profiled transaction has one decision, which names its place, and there is none without."""
    check = Check("one decision a profiled transaction")
    waiting = {(entry.partition, entry.offset): one for entry, one in run.profiled}
    check.compared = {"decisions": len(run.logs.entries("decisions")), "profiled": len(waiting)}
    decided: Counter[Key] = Counter()
    for entry, decision in run.logs.decoded("decisions"):
        key = key_of(decision)
        decided[key] += 1
        check.same(f"{key}: partition of decisions", entry.partition, run.home(key[0]))
        at = (decision["log"]["partition"], decision["log"]["offset"])
        one = waiting.pop(at, None)
        if one is None:
            check.differs(f"{key} was decided again, or from profiled {at}, which holds no transaction")
            continue
        stated = one["transaction"]
        for name, found, wanted in (
            ("key", key, key_of(one)),
            ("source", decision["source"], one["source"]),
            ("merchant", decision["merchant_id"], one["merchant_id"]),
            ("case", (decision["case_id"], decision["case_sequence"]), (one["case_id"], one["case_sequence"])),
            ("event time", microseconds(decision["event_time"]), one["event_time_us"]),
            ("amount", decision["amount"], stated["amount"]),
            ("amount in the base currency", decision["amount_base"], one["amount_base_minor"] / 100),
            ("ingestion", decision["ingested_at"], one["ingested_at"]),
        ):
            check.same(f"{key}: {name} of the decision", found, wanted)
    for one in waiting.values():
        check.differs(f"{key_of(one)} was profiled and not decided")
    for key, count in decided.items():
        if count > 1:
            check.differs(f"{key} has {count} decisions")
    return check


def alerts_are_one_to_one(run: Run) -> Check:
    """Each decision to alert has one alert, which repeats it, and no other decision has one."""
    check = Check("one alert a decision to alert")
    waiting = {key: one for key, one in run.decision_of.items() if one["action"] == "alert"}
    check.compared = {"alerts": len(run.logs.entries("alerts"))}
    same = ["case_id", "case_sequence", "merchant_id", "event_time", "amount", "currency", "amount_base", "score"]
    same += ["base_currency", "model_scores", "threshold", "selection", "versions", "source", "log"]
    for _, alert in run.logs.decoded("alerts"):
        key = key_of(alert)
        decision = waiting.pop(key, None)
        if decision is None:
            check.differs(f"{key} has an alert too many")
            continue
        check.same(f"{key}: alert_id", alert["alert_id"], f"{identity(*key):016x}")
        check.same(f"{key}: severity", alert["severity"], round(decision["score"] * decision["amount_base"], 2))
        for name in same:
            check.same(f"{key}: {name} of the alert", alert[name], decision[name])
        if not alert["reasons"]:
            check.differs(f"{key}: an alert without a reason")
    for key in waiting:
        check.differs(f"{key} was decided to be an alert and has none")
    return check


def dead_letters_are_complete(run: Run) -> Check:
    """Each input that cannot be accepted is set aside once, its bytes intact; no other is."""
    check = Check("dead letters are complete")
    wanted = {place: sent for place, sent in run.sent_at.items() if sent.dead is not None}
    newest: dict[int, int] = {
        partition: max(one["event_time_us"] for _, one in rows) for partition, rows in run.accepted.items()
    }
    for place, sent, _, known_at_us in run.labels():
        if sent.dead is None:
            continue
        # Whoever waits for a transaction that never comes is told once its partition has gone on for long enough.
        if known_at_us >= newest.get(run.home(sent.card), 0) - run.rules.label_patience_us:
            del wanted[place]
    check.compared = {"dead_letters": len(wanted)}
    for entry in run.logs.entries("dead-letters"):
        reason = {name.removeprefix(REASON): value for name, value in entry.headers if name.startswith(REASON)}
        topic = (reason.get("topic") or b"").decode().removeprefix(run.rules.prefix)
        place = (topic, int(reason.get("partition") or -1), int(reason.get("offset") or -1))
        meant = wanted.pop(place, None)
        if meant is None:
            check.differs(f"{entry.place} is a dead letter of {place}, which was to be accepted, or had one")
            continue
        check.same(f"{place}: code of the dead letter", (reason.get("error") or b"").decode(), meant.dead)
        check.same(f"{place}: value of the dead letter", entry.value, meant.value)
        check.same(f"{place}: key of the dead letter", entry.key, meant.key)
        check.same(f"{place}: number of the dead letter", entry.header(NUMBER_HEADER), str(meant.number).encode())
    for place, sent in wanted.items():
        check.differs(f"{place} ({sent.kind}) has no dead letter ({sent.dead})")
    return check


def progress_covers_every_input(run: Run) -> Check:
    """The batches that ``progress`` tells read every record of their topics once, in order."""
    check = Check("progress tells every batch")
    if not run.rules.expected.progress:
        return check
    for agent, topics in AGENT_READS.items():
        for partition in range(run.rules.card_partitions):
            order = run.reading.get((agent, partition), [])
            there = {place for place in run.entry_at if place[0] in topics and place[1] == partition}
            check.compared[agent] = check.compared.get(agent, 0) + len(there)
            if len(order) != len(set(order)):
                check.differs(f"{agent} partition {partition}: {len(order) - len(set(order))} records were read twice")
            for place in sorted(there - set(order)):
                check.differs(f"{agent}: {place} was never read")
            for topic in topics:
                offsets = [offset for name, _, offset in order if name == topic]
                if offsets != sorted(offsets):
                    check.differs(f"{agent} partition {partition}: {topic} was read out of order")
    return check


def nothing_was_set_aside(run: Run) -> Check:
    """No agent gave a record up."""
    check = Check("no record was set aside")
    for entry in run.logs.entries("models"):
        if (entry.key or b"").startswith(b"control/"):
            check.differs(f"{entry.key!r}: {(entry.value or b'')[:300]!r}")
    return check
