"""The invariants of ``docs/invariants.md``, by number, checked on the logs of a simulated cluster.

Agents are at rest: every record of their inputs is committed.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from datetime import datetime, timedelta

import msgspec
import numpy as np

from pipeline.engine.records.partitioner import partition_of
from pipeline.features.catalogue import FEATURES
from pipeline.learning.labels import KNOWN, NOTHING, UNSEEN, known_value, resolve_numbers, source_rank
from pipeline.scoring.blend import blend
from pipeline.scoring.lightgbm_model import LightGBMModel
from pipeline.scoring.payload import payload_digest
from pipeline.scoring.river_factory import load_river, new_learner
from schemas.codec import decode_label, timestamp_us
from schemas.errors import InvalidMessage
from schemas.messages import (
    CardConfig,
    Decision,
    DecisionFeatures,
    Label,
    ProfiledLabel,
    ProfiledTransaction,
    Quarantine,
)
from schemas.money import load
from schemas.records import Record
from schemas.times import US_PER_DAY
from tests.helpers.champion import no_files
from tests.simulation.model_kafka import Committed
from tests.simulation.names import LABEL_TOPICS, PARTITIONS, PREFIX
from tests.simulation.reading import (
    FORWARDED,
    At,
    DeadLetter,
    Logs,
    accepted_in_order,
    at_of,
    bare,
    dead_letter,
    decode_alert,
    decode_control,
    decode_decision,
    decode_example,
    decode_progress,
    decode_version,
    feature_rows,
    fields,
    messages,
    place_of,
    profiled_rows,
    written,
)

GRACE_US = 7 * US_PER_DAY
SHORTEST_LABEL_HORIZON_US = 10 * US_PER_DAY
SHORTEST_REPEAT_HORIZON_US = 20 * US_PER_DAY


def check(logs: Logs) -> None:
    """Check what the logs say."""
    for transaction in logs.cluster.transactions:
        check_transaction(logs, transaction)
    check_outcomes(logs)
    check_labels(logs)
    check_quarantines(logs)
    check_known_at(logs)
    check_examples(logs)
    check_scores(logs)
    check_online_models(logs)
    check_rates(logs)


# --- One transaction (3, 5, 7) ------------------------------------------------------------------------------------


def check_transaction(logs: Logs, transaction: Committed) -> None:
    """Offsets go forward, outputs are of what was read, decisions and alerts go together (3, 7)."""
    outputs = transaction.outputs
    assert all(offsets.step == 1 for offsets in transaction.offsets.values()), "7: offsets went back"

    def is_read(at: At) -> bool:
        return at[2] in transaction.offsets.get((PREFIX + at[0], at[1]), range(0))

    for message in accepted_in_order(outputs):
        assert is_read(at_of(message.read or message.source)), "7: a profile of what this transaction did not read"
    decided = [message for _, message in messages(outputs, "decisions", decode_decision)]
    for decision in decided:
        assert is_read(("profiled", decision.log.partition, decision.log.offset)), "7: a decision of what was not read"
    check_features(outputs, decided)
    alerts = [message for _, message in messages(outputs, "alerts", decode_alert)]
    assert [(alert.log, alert.score) for alert in alerts] == [
        (decision.log, decision.score) for decision in decided if decision.action == "alert"
    ], "3: alerts are not those of the decisions of their transaction"
    assert len({(item.versions.lightgbm, item.versions.policy, item.versions.river) for item in decided}) <= 1, "16"
    for marker in (message for _, message in messages(outputs, "progress", decode_progress)):
        for topic, end in marker.ends.items():
            places = [at for at in transaction.offsets if at[0] == PREFIX + topic]
            assert end in [transaction.offsets[at].stop for at in places], "7: a marker says otherwise than offsets"
    check_quarantining(
        transaction, [dead_letter(output) for output in outputs if output.topic == PREFIX + "dead-letters"]
    )


def check_quarantining(transaction: Committed, dead: list[DeadLetter]) -> None:
    """Dead letter, control record and the offset behind commit together, and nothing else (5)."""
    controls = [
        item for _, item in messages(transaction.outputs, "control", decode_control) if isinstance(item, Quarantine)
    ]
    set_aside = [
        reject
        for reject in dead
        if reject.code in ("set_aside", "unreadable") and reject.stage == agent_of(transaction)
    ]
    named = [
        (at_of(item.position), item.position.end or item.position.offset + 1, item.position.row) for item in controls
    ]
    own = {(row.at, row.end, row.row) for row in set_aside}
    assert set(named) <= own, "5: a quarantine without its dead letter"
    assert len(named) == len(set(named)), "5: quarantined twice"
    assert len({at for at, _, _ in named}) <= 1, "5: several records were quarantined together"
    of_controls = set(named)
    assert all(
        reject.code != "set_aside" or (reject.at, reject.end, reject.row) in of_controls for reject in set_aside
    ), "5: without control record"
    for (topic, number, _), end, row in named:
        assert transaction.offsets[PREFIX + topic, number].stop == end, "5: without the offset behind it"
        others = [output for output in transaction.outputs if output.topic.removeprefix(PREFIX) not in QUARANTINING]
        assert row is not None or others == [], "5: outputs of a quarantined record"


SHARED = ("transaction_id", "card_id", "merchant_id", "logit", "river_logit", "score")
"""Fields of a decision that its row of features and its examples repeat, beside others."""
QUARANTINING = ("control", "dead-letters", "progress")


def agent_of(transaction: Committed) -> str:
    return transaction.group.removeprefix(PREFIX)


# --- Outcomes (1 to 5) --------------------------------------------------------------------------------------------


def check_features(outputs: list[Record], decided: list[Decision]) -> None:
    """Every decision has one row of features, in its card's partition; it bears them itself where it is selected."""
    rows = {at_of(row.source): (record.partition, row) for record, _, row in feature_rows(outputs)}
    count = sum(1 for _ in feature_rows(outputs))
    assert {at_of(item.source) for item in decided} == rows.keys(), "3: decisions and rows of features differ"
    assert count == len(rows) == len(decided), "7: a row of features twice"
    for decision in decided:
        partition, row = rows[at_of(decision.source)]
        assert partition == partition_of(decision.card_id, PARTITIONS), "6: features in another partition"
        for name in (*SHARED, "event_time", "amount_base", "log"):
            assert getattr(row, name) == getattr(decision, name), f"14: another {name} beside the features"
        assert row.versions == decision.versions
        assert decision.features == (None if decision.selection is None else row.features), "14: other features"


def check_outcomes(logs: Logs) -> None:
    """Every record of ``transactions`` has one outcome, every accepted one a decision or a quarantine (1, 3)."""
    accepted: dict[At, tuple[str, str]] = {}
    profiled: dict[At, dict[int, At]] = defaultdict(dict)
    for record, row, message in profiled_rows(logs.records["profiled"]):
        if isinstance(message, ProfiledTransaction):
            source = at_of(message.source)
            assert source not in accepted, f"1, 3: {source} was accepted twice"
            accepted[source] = (message.card_id, message.transaction_id)
            profiled[place_of(record)][row] = source
    outcomes: dict[At, list[str]] = defaultdict(list)
    for _, decision in logs.messages_of("decisions", decode_decision):
        source = at_of(decision.source)
        assert profiled["profiled", decision.log.partition, decision.log.offset][decision.log.row] == source
        outcomes[source].append("decision")
    for dead in logs.dead:
        for offset in range(dead.at[2], dead.end):
            at = (*dead.at[:2], offset)
            if dead.stage == "card" and at[0] == "rerouted":
                at = place_of(logs.original(logs.at(at)))
            if dead.stage in ("card", "score"):
                rows: Mapping[int | None, At] = profiled.get(at, {}) or {None: at}
                for row, source in rows.items():
                    if dead.row in (None, row):
                        outcomes[source].append(f"dead letter {dead.code}")
    ids = Counter(accepted.values())
    for at in positions(logs, "transactions"):
        found = outcomes[at]
        if at in accepted:
            assert len(found) == 1, f"1, 3: {at} was accepted and has {found}"
        elif not found:
            reported = fields(logs.at(at))
            assert (reported.get("card_id"), reported.get("transaction_id")) in ids, f"1: {at} has no outcome"
        else:
            assert len(found) == 1, f"1: {at} has {found}"
    check_repeats(logs, accepted)


def positions(logs: Logs, topic: str) -> list[At]:
    """Return every position of a topic that holds a record, readable or not."""
    found = []
    for number in range(PARTITIONS):
        for entry in logs.cluster.logs[PREFIX + topic, number].entries:
            offsets = entry if isinstance(entry, range) else [entry.offset]
            found += [(topic, number, offset) for offset in offsets]
    return found


def check_repeats(logs: Logs, accepted: dict[At, tuple[str, str]]) -> None:
    """A transaction is accepted again only when event time has passed the horizon (3)."""
    stream_time_us: dict[int, int] = defaultdict(int)
    known: dict[tuple[str, str], int] = {}
    for transaction in logs.transactions("card"):
        for message in accepted_in_order(transaction.outputs):
            home = partition_of(message.card_id, PARTITIONS)
            identity = accepted[at_of(message.source)]
            before = known.get(identity)
            if before is not None:
                passed_us = stream_time_us[home] - before
                assert passed_us > SHORTEST_REPEAT_HORIZON_US, f"3: {identity} was accepted again"
            stream_time_us[home] = max(stream_time_us[home], message.event_time_us)
            known[identity] = stream_time_us[home]


def check_labels(logs: Logs) -> None:
    """Every label is accepted or a dead letter; of one without a transaction the card agent has another (2, 4)."""
    dead: dict[At, list[str]] = defaultdict(list)
    for log in logs.dead:
        if log.stage in ("label", "card"):
            for offset in range(log.at[2], log.end):
                at = (*log.at[:2], offset)
                dead[place_of(logs.original(logs.at(at))) if at[0] in FORWARDED else at].append(log.code)
    accepted = Counter(place_of(logs.original(record)) for record in logs.records["accepted-labels"])
    for at in [at for topic in LABEL_TOPICS for at in positions(logs, topic)]:
        entry = logs.cluster.logs[PREFIX + at[0], at[1]].at(at[2])
        found = dead[at]
        assert accepted[at] <= 1, f"2: {at} was accepted {accepted[at]} times"
        assert accepted[at] or found, f"2: {at} has no outcome"
        assert len(found) <= 1, f"2: {at} has {found}"
        if isinstance(entry, range):
            assert found == ["unreadable"], f"2: {at} of {entry} has {found}"
        elif entry is not None and label_of(entry) is None:
            assert len(found) == 1, f"4: {at} cannot be decoded, and has no dead letter"
            assert not accepted[at], f"4, 22: {at} was accepted"


def label_of(record: Record) -> Label | None:
    """Return the label in a record of a topic of labels; None for one that must be refused (4, 22)."""
    try:
        stamp_us = record.timestamp_ms * 1_000
        label = decode_label(record.value, record_timestamp_us=stamp_us, future_tolerance_us=300_000_000)
    except InvalidMessage:
        return None
    return label if label.source in LABEL_TOPICS[bare(record.topic)] else None


def check_quarantines(logs: Logs) -> None:
    """What makes an agent fail, and what it cannot read, is quarantined once (5)."""
    quarantined = Counter((log.stage, log.at, log.row) for log in logs.dead if log.code == "set_aside")
    assert all(count == 1 for count in quarantined.values()), "5: quarantined twice"
    for agent, topics in READS.items():
        for topic in topics:
            for record in logs.records[topic]:
                rows = tuple(log.row for log in logs.dead if (log.stage, log.at) == (agent, place_of(record)))
                left = msgspec.structs.replace(record, skipped_rows=tuple(row for row in rows if row is not None))
                fails = any(f"!{what}-{agent}".encode() in written(left) for what in ("fail", "kill"))
                assert not fails or (agent, place_of(record), None) in quarantined, f"5: {agent} {place_of(record)}"
    ranges = Counter((log.stage, log.at, log.end) for log in logs.dead if log.code == "unreadable")
    assert all(count == 1 for count in ranges.values()), "5: a range was quarantined twice"


READS = {
    "label": tuple(LABEL_TOPICS),
    "card": ("transactions", "rerouted", "accepted-labels"),
    "score": ("profiled",),
    "feedback": ("accepted-labels", "features"),
    "learn": ("examples",),
}


# --- Labels (14) --------------------------------------------------------------------------------------------------


def known_at_us(record: Record, label: Label) -> int:
    return max(timestamp_us(label.labelled_at), record.timestamp_ms * 1_000)


def check_known_at(logs: Logs) -> None:
    """A label counts from the later of ``labelled_at`` and its arrival, and the strongest one holds (14)."""
    held: dict[tuple[str, str], str] = {}
    for transaction in logs.transactions("card"):
        for _, _, message in profiled_rows(transaction.outputs):
            if isinstance(message, ProfiledLabel):
                record = logs.at(at_of(message.source))
                label = label_of(record)
                assert label is not None
                assert message.known_at_us == known_at_us(record, label), "14"
                held[message.card_id, message.transaction_id] = message.known
    lost = {log.at for log in logs.dead if log.stage in ("label", "card")}
    lost |= {place_of(logs.original(logs.at(log.at))) for log in logs.dead if log.at[0] in FORWARDED}
    row: dict[tuple[str, str], list[tuple[int, Label]]] = defaultdict(list)
    for record in [record for topic in LABEL_TOPICS for record in logs.records[topic]]:
        label = label_of(record)
        if label is not None and place_of(record) not in lost:
            row[label.card_id, label.transaction_id].append((known_at_us(record, label), label))
    times = event_times(logs)
    for identity, labels in row.items():
        first_us, event_time_us = times.get(identity, (0, None))
        if event_time_us is None or any(
            not first_us - GRACE_US <= at_us <= event_time_us + SHORTEST_LABEL_HORIZON_US for at_us, _ in labels
        ):
            continue
        state = UNSEEN
        for _, label in labels:
            reported = source_rank(label.source), timestamp_us(label.labelled_at), KNOWN.index(known_value(label.label))
            state, _ = resolve_numbers(state, *reported)
        assert held.get(identity, NOTHING) == KNOWN[state[2]], f"2, 14: {identity}"


def event_times(logs: Logs) -> dict[tuple[str, str], tuple[int, int | None]]:
    """Of each transaction how far event time had come when it was accepted, and its own time; None: accepted twice."""
    stream_time_us: dict[int, int] = defaultdict(int)
    times: dict[tuple[str, str], tuple[int, int | None]] = {}
    for transaction in logs.transactions("card"):
        for message in accepted_in_order(transaction.outputs):
            home, identity = partition_of(message.card_id, PARTITIONS), (message.card_id, message.transaction_id)
            stream_time_us[home] = max(stream_time_us[home], message.event_time_us)
            times[identity] = (stream_time_us[home], None if identity in times else message.event_time_us)
    return times


def check_examples(logs: Logs) -> None:
    """Learning uses the features that were served, and labels from when they were known (14)."""
    rows = feature_rows(logs.records["features"])
    decisions = {(row.log.partition, row.log.offset, row.log.row): row for _, _, row in rows}
    labels = defaultdict(list)
    for record in [record for topic in LABEL_TOPICS for record in logs.records[topic]]:
        if (label := label_of(record)) is not None:
            labels[label.card_id, label.transaction_id, label.source].append(known_at_us(record, label))
    revisions = Counter[tuple[int, int, int, int]]()
    for _, example in logs.messages_of("examples", decode_example):
        log = example.log
        served = decisions[log.partition, log.offset, log.row]
        revisions[log.partition, log.offset, log.row, example.revision] += 1
        for name in (
            "transaction_id",
            "card_id",
            "merchant_id",
            "features",
            "logit",
            "river_logit",
            "score",
            "versions",
        ):
            assert getattr(example, name) == getattr(served, name), f"14: another {name} than was served"
        if example.label_source is None:
            assert example.known_at > example.event_time
        else:
            at = labels[example.card_id, example.transaction_id, example.label_source]
            assert microseconds_of(example.known_at) in at, "14: an example of what was known at another time"
    assert all(count == 1 for count in revisions.values()), "7: an example was written twice"


def microseconds_of(moment: datetime) -> int:
    return (moment - datetime.fromtimestamp(0, moment.tzinfo)) // timedelta(microseconds=1)


# --- Versions (15 to 18) ------------------------------------------------------------------------------------------


def contents(logs: Logs, name: str) -> dict[str, bytes]:
    """Return what ``models`` holds of one name, by version; the first record of a digest counts (15)."""
    found: dict[str, bytes] = {}
    for _, version in logs.messages_of("models", decode_version):
        payload = bytes(version.payload)
        if version.name == name and payload_digest(payload) == version.digest:
            found.setdefault(version.version, payload)
    return found


def check_scores(logs: Logs) -> None:
    """Every score can be computed again, to the last bit, from what its decision names (15)."""
    lightgbms, rivers = contents(logs, "lightgbm"), contents(logs, "river")
    by_versions: dict[tuple[str, str, str], list[DecisionFeatures]] = defaultdict(list)
    for _, _, decision in feature_rows(logs.records["features"]):
        by_versions[decision.versions.lightgbm, decision.versions.river, decision.versions.policy].append(decision)
    for (lightgbm, river, _), decisions in by_versions.items():
        model = LightGBMModel.from_payload(lightgbms[lightgbm])
        given = [[decision.features[name] for name in FEATURES] for decision in decisions]
        features = np.array([[math.nan if value is None else value for value in row] for row in given])
        logit = model.logit(features)
        assert logit.tolist() == [decision.logit for decision in decisions], "15: another score of LightGBM"
        if river in rivers:
            own = load_river(rivers[river], None, no_files)
            river_logit = own.logit(features, logit)
            assert river_logit.tolist() == [decision.river_logit for decision in decisions], (
                "15: another score of River"
            )
            score = blend(np.stack([logit, river_logit], axis=1), [1.0])
            assert score.tolist() == [decision.score for decision in decisions], "15: another score"
        else:
            assert river.endswith("@0"), f"15: {river} is not on models"


def check_online_models(logs: Logs) -> None:
    """A version of the online model is what the examples in front of it make of its beginning (11, 15)."""
    gone = {log.at[2] for log in logs.dead if log.stage == "learn"}
    examples = [(record.offset, example) for record, example in logs.messages_of("examples", decode_example)]
    for version, payload in contents(logs, "river").items():
        end = int(version.rpartition("@")[2])
        learner = new_learner()
        learner.learn_examples([example for offset, example in examples if offset < end and offset not in gone])
        assert learner.snapshot(end).to_payload() == payload, f"11: {version} is not what its examples make"


def check_rates(logs: Logs) -> None:
    """A batch's rate table is on ``models`` (18)."""
    published = {load(payload).digest for payload in contents(logs, "rates").values()}
    for _, marker in logs.messages_of("progress", decode_progress):
        assert not isinstance(marker.config, CardConfig) or marker.config.rates_digest in published, "18"
