"""People's data: what is left out of dead letters and of ``profiled``, and for how long topics keep records."""

import hashlib
import json

import pytest
from pydantic import ValidationError

from pipeline.engine.cards.profiled_blocks import without_fields
from pipeline.engine.records.results import Result, redacted
from pipeline.kafka.cluster.admin import ensure_topics, topic_config
from pipeline.kafka.cluster.errors import TopicError
from pipeline.kafka.cluster.retention import wanted_problems
from pipeline.settings import Settings
from schemas.fields import DECLARED_FIELDS
from schemas.records import Record
from schemas.topics import DECISIONS, TRANSACTIONS

VALUE = b'{"card_id":"card-4711","ip":"10.0.0.1","amount":12.50,"ip":"10.0.0.2","note":"\\u00e9"}'


def test_a_redacted_dead_letter_holds_nothing_of_its_record() -> None:
    result = Result()
    headers = (("trace", b"card-4711"), ("dead-letter-topic", b"card-4711"), ("dead-letter-error", b"card-4711"))
    record = Record("transactions", 2, 7, 1_000, b"card-4711", VALUE, headers)
    result.dead_letter(record, "card", "not_json", "card-4711 is no card")
    letter = redacted(result.outputs[0])
    assert (letter.key, letter.value, letter.partition) == (None, None, None)
    assert not any(b"4711" in (content or b"") for _, content in letter.headers)
    reported = dict(letter.headers)
    assert (reported["dead-letter-topic"], reported["dead-letter-partition"], reported["dead-letter-offset"]) == (
        b"transactions", b"2", b"7",
    )  # fmt: skip
    assert reported["dead-letter-error"] == b"not_json"
    assert reported["dead-letter-value-bytes"] == str(len(VALUE)).encode()


def test_a_redacted_dead_letter_has_no_digest_by_which_a_card_could_be_found() -> None:
    result = Result()
    number = b"4000001234567899"
    result.dead_letter(Record("raw", 0, 1, 0, number, number), "tokenise", "wrong_type", "It is no object.")
    result.dead_letter(Record("raw", 0, 2, 0, number, number), "tokenise", "too_large", "No.", kept_bytes=0)
    found = {hashlib.sha256(number).hexdigest().encode(), number}
    for letter in map(redacted, result.outputs):
        assert dict(letter.headers)["dead-letter-value-bytes"] == b"16"
        assert not found & {content for _, content in letter.headers}


def test_a_redacted_dead_letter_without_a_value_is_one_too() -> None:
    result = Result()
    result.dead_letter(Record("transactions", 0, 1, 0, None, None), "card", "no_value", "It has no value.")
    assert "dead-letter-value-bytes" not in dict(redacted(result.outputs[0]).headers)


def test_dropped_fields_are_gone_and_others_stay_as_they_are() -> None:
    left = without_fields(VALUE, {"ip", "device_id"})
    assert left == b'{"card_id":"card-4711","amount":12.50,"note":"\\u00e9"}'
    assert without_fields(VALUE, {"device_id"}) is VALUE


@pytest.mark.parametrize("value", [b'{"a":1e999,"ip":"x"}', b'{"ip":{"ip":[1,2]},"a":' + b"9" * 500 + b"}"])
def test_numbers_that_nobody_can_hold_stay(value: bytes) -> None:
    left = without_fields(value, {"ip"})
    assert b"ip" not in left
    assert json.loads(value, parse_int=str, parse_float=str)["a"].encode() in left


def test_a_required_field_cannot_be_dropped() -> None:
    assert Settings(dropped_fields="ip, note").dropped_names == {"ip", "note"}
    with pytest.raises(ValidationError, match="card_id is required"):
        Settings(dropped_fields="ip,card_id")


def test_personal_stands_for_the_fields_that_are_declared_so() -> None:
    personal = {field.name for field in DECLARED_FIELDS if field.personal}
    assert {"card_id", "account_id", "ip"} <= personal
    settings = Settings(dropped_fields="personal, note", token_fields="personal, customer")
    assert settings.dropped_names == personal - {"card_id"} | {"note"}
    assert set(settings.token_names) == {*personal, "customer"}


def test_topics_of_labels_have_a_retention_too() -> None:
    topics = {"labels": ("analyst",), "chargebacks": ("chargeback",)}
    assert wanted_problems(Settings(label_topics=topics, retention_days={"chargebacks": 200})) == []
    (problem,) = wanted_problems(Settings(label_topics=topics, retention_days={"chargebacks": 20}))
    assert "127 days or more" in problem


def test_topics_are_created_with_the_retention_that_is_set() -> None:
    settings = Settings(retention_days={"decisions": 400, "transactions": 200})
    assert topic_config(DECISIONS, settings)["retention.ms"] == str(400 * 86_400_000)
    assert topic_config(TRANSACTIONS, Settings())["retention.ms"] == "-1"
    assert wanted_problems(settings) == []


@pytest.mark.parametrize(
    ("topic", "days", "what"),
    [
        ("transactions", 100, "127 days or more"),
        ("progress", 30, "127 days or more"),
        ("models", 4_000, "for ever"),
        ("control", 4_000, "for ever"),
        ("examples", 4_000, "for ever"),
        ("decisions", 0, "more than 0 days"),
        ("decision", 10, "no topic"),
    ],
)
def test_a_retention_that_a_restore_cannot_do_with_is_refused(topic: str, days: float, what: str) -> None:
    settings = Settings(retention_days={topic: days})
    (problem,) = wanted_problems(settings)
    assert what in problem
    # Before any broker is asked.
    with pytest.raises(TopicError, match="RETENTION_DAYS"):
        ensure_topics("127.0.0.1:1", settings)
