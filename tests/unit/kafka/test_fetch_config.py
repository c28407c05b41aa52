"""What a consumer in no hurry fetches."""

from pipeline.kafka.cluster.clients import FETCH_BYTES, late_fetch_config
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
