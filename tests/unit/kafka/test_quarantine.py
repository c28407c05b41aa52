"""Which records an agent skips because they were quarantined, and which control records are not believed."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from agents.failures import NOT_THE_RECORD
from agents.topology import CARD, SCORE, AgentSpec
from pipeline.engine.partition_state.pending_items import PendingItems
from pipeline.engine.partition_state.state import MemoryStore, StoreError
from pipeline.kafka.cluster.errors import OutputTooLarge
from pipeline.kafka.records.batch import UnreadableRange
from pipeline.kafka.session.quarantine import ProcessDied, Quarantines
from pipeline.settings import Settings
from schemas.records import Output, Record
from schemas.topics import CONTROL

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def record(offset: int, value: bytes | None = b"{}") -> Record:
    return Record("profiled", 0, offset, 0, b"c1", value)


def quarantines(spec: AgentSpec = SCORE, refused: list[str] | None = None) -> Quarantines:
    return Quarantines("nowhere:1", Settings(), spec.name, spec.reads, [].append if refused is None else refused.append)


def control(*outputs: Output) -> list[Record]:
    return [
        Record(CONTROL.name, 0, offset, 0, output.key, output.value)
        for offset, output in enumerate(outputs)
        if output.topic is CONTROL
    ]


def test_a_restore_skips_the_record_whose_content_the_quarantine_names() -> None:
    known = quarantines()
    known._take(control(*known.outputs(record(1), ValueError("odd"), NOW).outputs))
    assert known.without([record(1), record(2)]) == [record(2)]
    # A record that was forged for a position to come cannot name what will lie there.
    assert known.without([record(1, b"other")]) == [record(1, b"other")]


def test_where_dead_letters_are_redacted_control_has_no_text_of_an_error() -> None:
    known = Quarantines("nowhere:1", Settings(dead_letters="redacted"), "score", SCORE.reads, [].append)
    outputs = known.outputs(record(1), KeyError("card-4711"), NOW).outputs
    (item,) = (output.value or b"" for output in outputs if output.topic is CONTROL)
    assert b"KeyError" in item
    assert b"4711" not in item
    known._take(control(*outputs))
    assert known.without([record(1)]) == []
    own = known.outputs(record(1), ProcessDied("It killed two processes."), NOW).outputs
    assert any(b"It killed two" in (output.value or b"") for output in own)


def test_a_record_without_a_value_can_be_quarantined() -> None:
    known = quarantines()
    known._take(control(*known.outputs(record(1, None), ValueError("odd"), NOW).outputs))
    assert known.without([record(1, None), record(1, b"")]) == [record(1, b"")]


def test_of_an_agent_with_several_inputs_markers_alone_tell_what_was_quarantined() -> None:
    known = quarantines(CARD)
    known._take(control(*known.outputs(record(1), ValueError("odd"), NOW).outputs))
    assert known.without([record(1)]) == [record(1)]


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"\xff",
        b"[" * 5_000,
        b'{"kind":"quarantine"}',
        b'{"kind":"other"}',
        b'{"kind":"quarantine","agent":"\xff',
    ],
)
def test_what_is_no_control_record_is_refused_and_counted(value: bytes | None) -> None:
    refused: list[str] = []
    known = quarantines(refused=refused)
    good = control(*known.outputs(record(1), ValueError("odd"), NOW).outputs)
    known._take([Record(CONTROL.name, 0, 0, 0, b"quarantine/score/profiled/0/1", value), *good])
    assert refused == [CONTROL.name]
    assert known.without([record(1)]) == []


def test_the_limit_counts_a_day_and_one_agent() -> None:
    known = quarantines()
    for offset in range(3):
        at = NOW + offset * timedelta(hours=12)
        known._take(control(*known.outputs(record(offset), ValueError("odd"), at).outputs))
    known._take(control(*quarantines(CARD).outputs(record(9), ValueError("odd"), NOW).outputs))
    # Of what a producer can cause at will, any number is quarantined.
    known._take(control(*known.outputs(record(10), OutputTooLarge("large"), NOW).outputs))
    broken = UnreadableRange(("profiled", 0), 11, 20, "_BAD_COMPRESSION", "Decompression failed")
    known._take(control(*known.range_outputs(broken, NOW).outputs))
    assert known.within_a_day(NOW + timedelta(hours=25)) == 2
    assert known.within_a_day(NOW + timedelta(hours=24) + timedelta(days=1)) == 0
    # A time to come would count until then.
    known._take(control(*known.outputs(record(9), ValueError("odd"), NOW + timedelta(days=300)).outputs))
    assert known.within_a_day(NOW + timedelta(hours=25)) == 2


def test_the_position_bears_no_topic_prefix() -> None:
    known = Quarantines("nowhere:1", Settings(topic_prefix="dev-"), "score", SCORE.reads, [].append)
    (output,) = [
        output
        for output in known.outputs(msgspec.structs.replace(record(7), topic="dev-profiled"), ValueError(), NOW).outputs
        if output.topic is CONTROL
    ]
    assert output.key == b"quarantine/score/profiled/0/7"


def test_what_the_store_has_lost_is_no_record_s_fault() -> None:
    store = MemoryStore()
    items = PendingItems(store)
    items.add(b"d" * 16, 5, b"label")
    store.commit()
    for key in [key for key, _ in store.scan(b"", b"\xff" * 40) if store.get(key) == (5).to_bytes(8, "big") + b"label"]:
        store.delete(key)
    with pytest.raises(StoreError, match="rebuilds it"):
        items.take_older(10, 10)
    assert issubclass(StoreError, NOT_THE_RECORD)
