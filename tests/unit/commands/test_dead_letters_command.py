"""Words for people about dead letters, and which of them are sent again, whatever their headers claim."""

import msgspec
import pytest

from pipeline.commands.dead_letters import DeadLetter, Filters, chosen, summary
from pipeline.engine.cards.joins import NO_TRANSACTION
from pipeline.engine.records.results import Result, redacted
from schemas.records import Headers, Output, Record

INPUTS = frozenset({"transactions", "labels"})
RECORD = Record("transactions", 0, 1, 5, b"k", b"v")
EVERY = Filters(codes=(), topics=(), since=None, until=None, positions=())


def letter_of(output: Output, timestamp_ms: int = 5) -> Record:
    return Record("dead-letters", 0, 0, timestamp_ms, output.key, output.value, output.headers)


def refused(record: Record, **more: int) -> Output:
    result = Result()
    result.dead_letter(record, "card", "unreadable", "No.", **more)
    return result.outputs[0]


@pytest.mark.parametrize(
    ("output", "why"),
    [
        (refused(RECORD), ""),
        (refused(msgspec.structs.replace(RECORD, topic="profiled")), "none that producers write to"),
        # A topic of somebody else, which a forged dead letter would have an operator write to.
        (refused(msgspec.structs.replace(RECORD, topic="payments")), "none that producers write to"),
        (refused(RECORD, kept_bytes=0), "for its size or as redacted"),
        (redacted(refused(RECORD)), "for its size or as redacted"),
        (refused(RECORD, end=9), "nobody could read"),
        (refused(msgspec.structs.replace(RECORD, value=None)), "without a value"),
    ],
)
def test_what_cannot_be_resent_says_why(output: Output, why: str) -> None:
    obstacle = DeadLetter.from_record(letter_of(output)).obstacle(INPUTS)
    assert why in obstacle
    assert bool(why) == bool(obstacle)


@pytest.mark.parametrize("times", [b"9" * 5_000, b"-1", b"\xd9\xa3", None])
def test_a_producer_s_own_headers_stop_no_listing(times: bytes | None) -> None:
    headers: Headers = (("fraud-pipeline-resent", times),)
    letter = DeadLetter.from_record(letter_of(refused(msgspec.structs.replace(RECORD, headers=headers))))
    assert letter.resent == 0
    assert "resent" not in letter.line()


@pytest.mark.parametrize("timestamp_ms", [-1, 2**63 - 1])
def test_a_time_that_no_calendar_has_stops_no_listing(timestamp_ms: int) -> None:
    (letter,) = chosen([letter_of(refused(RECORD), timestamp_ms)], EVERY)
    assert letter.line()
    assert letter.as_json()


def test_a_label_without_its_transaction_may_have_come_too_late() -> None:
    result = Result()
    result.dead_letter(RECORD, "card", NO_TRANSACTION, "No.")
    (line,) = summary([DeadLetter.from_record(letter_of(result.outputs[0]))])
    assert "one that came too late does so again" in line
