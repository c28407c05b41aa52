"""What a consumer fetches at a time: little of what producers write, and late for readers in no hurry."""

import pytest

from pipeline.kafka.clients import FETCH_BYTES, OWN_FETCH_BYTES, fetch_config
from pipeline.settings import Settings
from schemas.topics import DECISIONS, EXAMPLES, LABELS, PROFILED, REROUTED, TRANSACTIONS, Topic

SIZES = ("fetch.max.bytes", "max.partition.fetch.bytes")


@pytest.mark.parametrize("topics", [(TRANSACTIONS,), (LABELS, REROUTED, DECISIONS), (TRANSACTIONS, REROUTED, LABELS)])
def test_answers_stay_small_where_producers_write(topics: tuple[Topic, ...]) -> None:
    assert not fetch_config(topics, Settings(), late_ms=250).keys() & set(SIZES)


@pytest.mark.parametrize("topic", [PROFILED, EXAMPLES, DECISIONS])
def test_answers_are_larger_where_only_agents_write(topic: Topic) -> None:
    config = fetch_config([topic], Settings())
    assert [config[name] for name in SIZES] == [OWN_FETCH_BYTES, OWN_FETCH_BYTES]
    assert not config.keys() - set(SIZES)


def test_a_late_answer_comes_early_when_it_is_full() -> None:
    config = fetch_config([LABELS], Settings(), late_ms=250)
    assert config["fetch.wait.max.ms"] == 250
    # A larger one would never be full: brokers would always wait.
    assert config["fetch.min.bytes"] <= FETCH_BYTES


def test_settings_win() -> None:
    settings = Settings(kafka_config={"fetch.max.bytes": "70000", "fetch.wait.max.ms": "10"})
    config = fetch_config([PROFILED], settings, late_ms=250)
    assert config.keys() == {"max.partition.fetch.bytes", "fetch.min.bytes"}
