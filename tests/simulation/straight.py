"""The same batches once more, in one go, by agents that nothing befalls: results and state must be the same (8, 11)."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC
from typing import Any

import msgspec

from agents.loop import Partitions
from agents.topology import AgentSpec
from pipeline.engine.scores.block_messages import read_messages
from pipeline.engine.scores.decision_records import read_feature_messages
from pipeline.kafka.session.quarantine import Quarantines
from schemas.codec import encode
from schemas.messages import ProcessingConfig, Quarantine
from schemas.records import Output, Record
from schemas.topics import DECISION_FEATURES, PROFILED
from tests.simulation.digest import state_digest
from tests.simulation.model_kafka import Committed
from tests.simulation.names import PARTITIONS, PREFIX, SPECS
from tests.simulation.reading import At, Logs, at_of, dead_letter, decode_control, decode_progress, fields, messages
from tests.simulation.world import World, made_context

_OF_THE_CLOCK = ("ingested_at", "decided_at", "raised_at")
_OF_THE_MODELS = (
    "score", "model_scores", "logit", "river_logit", "action", "selection", "selection_probability", "threshold",
    "versions",
)  # fmt: skip


def check_straight(world: World) -> None:
    """Work through what was committed, by one agent after the other."""
    logs = Logs(world.cluster)
    settings = world.settings("straight").model_copy(update={"snapshot_url": ""})
    context = made_context(world, settings)
    for spec in SPECS.values():
        if spec.name == "learn":
            # Its versions are checked one by one (`tests.simulation.checks.check_online_models`).
            continue
        quarantines = Quarantines(world.address, settings, spec.name, spec.reads, lambda _: None)
        handler = context.partitions(spec, quarantines)
        try:
            _check_agent(world, logs, spec, handler)
        finally:
            handler.close()


def _check_agent(world: World, logs: Logs, spec: AgentSpec, handler: Partitions) -> None:
    handler.ready()
    handler.assigning(lambda: None)
    for number in range(PARTITIONS):
        handler.restore(number, {}, {}, lambda: None)
    for transaction in logs.transactions(spec.name):
        records = _read(logs, spec, transaction)
        config = _config(transaction)
        if not records:
            continue
        if set(config.values()) <= {handler.config}:
            result = handler.process(records, world.clock.now(UTC))
            assert _sorted(result.outputs) == _sorted(_committed(transaction)), f"11: {spec.name} wrote otherwise"
            handler.commit(range(PARTITIONS))
        else:
            # It was processed under other settings, which only a restore knows.
            for number in sorted({record.partition for record in records}):
                handler.replay(number, [record for record in records if record.partition == number], config[number])
    for number in range(PARTITIONS):
        group = logs.cluster.group(PREFIX + spec.name)
        names = sorted(PREFIX + topic.name for topic in spec.reads)
        offsets = tuple(group.committed.get((name, number), (0, ""))[0] for name in names)
        known = world.digests.get((spec.name, number, offsets, ""))
        assert known in (None, state_digest(handler, number)), f"11: another state of {spec.name} partition {number}"


def _read(logs: Logs, spec: AgentSpec, transaction: Committed) -> list[Record]:
    """Return the records of a transaction as a batch holds them, without what was quarantined."""
    rows: dict[At, list[int | None]] = defaultdict(list)
    for _, item in messages(transaction.outputs, "control", decode_control):
        if isinstance(item, Quarantine):
            rows[at_of(item.position)].append(item.position.row)
    records = []
    for number in range(PARTITIONS):
        for topic in spec.reads:
            partition = (PREFIX + topic.name, number)
            found = logs.cluster.logs[partition].records(transaction.offsets.get(partition, range(0)))
            for record in found:
                gone = rows.get((topic.name, number, record.offset), [])
                if None not in gone:
                    skipped = tuple(sorted(row for row in gone if row is not None))
                    records.append(msgspec.structs.replace(record, skipped_rows=skipped))
    return records


def _config(transaction: Committed) -> Mapping[int, ProcessingConfig | None]:
    found: dict[int, ProcessingConfig | None] = defaultdict(lambda: None)
    for record, marker in messages(transaction.outputs, "progress", decode_progress):
        found[record.partition] = marker.config
    return found


def _committed(transaction: Committed) -> list[Output]:
    by_name = {PREFIX + topic.name: topic for spec in SPECS.values() for topic in spec.writes}
    return [
        Output(by_name[output.topic], output.key, output.value, output.headers, output.partition)
        for output in transaction.outputs
        if output.topic != PREFIX + "progress" and not _quarantines(output)
    ]


def _quarantines(record: Record) -> bool:
    """Whether an output says that a record or a row was quarantined."""
    return record.topic == PREFIX + "control" or (
        record.topic == PREFIX + "dead-letters" and dead_letter(record).code == "set_aside"
    )


def _without_clock(message: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in message.items() if name not in _OF_THE_CLOCK}


def _sorted(outputs: Sequence[Output]) -> list[Any]:
    """Outputs without what the clock or the models say, by topic; alerts, which follow from scores, are left out."""
    row: dict[str, list[Any]] = defaultdict(list)
    for output in outputs:
        if output.topic.name == "alerts":
            continue
        value: Any = output.value
        if output.topic is PROFILED:
            rows = [msgspec.json.decode(encode(message)) for message in read_messages(output.value)]
            value = output.partition, msgspec.json.encode([_without_clock(row) for row in rows])
        elif output.topic is DECISION_FEATURES:
            rows = [msgspec.json.decode(encode(message)) for message in read_feature_messages(output.value)]
            left = [{name: row[name] for name in row if name not in _OF_THE_MODELS} for row in rows]
            value = output.partition, msgspec.json.encode(left)
        elif found := fields(Record("", 0, 0, 0, None, output.value)):
            models = (*_OF_THE_MODELS, "features") if output.topic.name == "decisions" else ()
            written = _without_clock(found)
            value = msgspec.json.encode({name: written[name] for name in written if name not in models})
        row[output.topic.name].append((output.key, value, output.headers))
    return sorted(row.items())
