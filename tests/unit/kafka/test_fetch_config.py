"""The configuration of a session's consumer, and of one in no hurry."""

import pytest

from pipeline.kafka.cluster.clients import CLASSIC_SESSION_TIMEOUT_MS, FETCH_BYTES, GroupProtocol, late_fetch_config
from pipeline.kafka.records.member import Member
from pipeline.kafka.session.session import _consumer_config
from pipeline.settings import Settings


def test_a_late_answer_comes_early_when_it_is_full() -> None:
    config = late_fetch_config(250, Settings())
    assert config["fetch.wait.max.ms"] == 250
    # A larger one would never be full: brokers would always wait.
    assert config["fetch.min.bytes"] <= FETCH_BYTES


def test_who_is_in_a_hurry_is_answered_at_once() -> None:
    assert not late_fetch_config(0, Settings())


def test_settings_win() -> None:
    settings = Settings(kafka_config={"fetch.wait.max.ms": "10"})
    assert late_fetch_config(250, settings).keys() == {"fetch.min.bytes"}


@pytest.mark.parametrize(("protocol", "timeout_ms"), [("classic", CLASSIC_SESSION_TIMEOUT_MS), ("consumer", None)])
def test_a_session_passes_nothing_over_and_is_replaced_soon(protocol: GroupProtocol, timeout_ms: int | None) -> None:
    """By the classic protocol the client says how soon a dead worker is replaced, else the brokers do."""
    config = _consumer_config(Member("localhost:1", Settings(), "card", ()), protocol)
    assert config.get("session.timeout.ms") == timeout_ms
    # Records that retention deleted before they were read end the worker.
    assert config["auto.offset.reset"] == "error"
    assert CLASSIC_SESSION_TIMEOUT_MS <= 10_000
