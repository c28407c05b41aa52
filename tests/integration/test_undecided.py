"""An open foreign transaction on `transactions`: the worker reports whose records wait, and for how long."""

import urllib.request

import pytest
from confluent_kafka import Producer
from prometheus_client.parser import text_string_to_metric_families

from pipeline.engine.encoding.blocks import row_count
from pipeline.kafka.cluster.clients import producer_config
from pipeline.settings import Settings
from schemas.topics import ACCEPTED_LABELS, PROFILED, TRANSACTIONS
from tests.helpers.logs import after, transaction
from tests.helpers.pages import shown
from tests.helpers.topics import Cluster, Starter
from tests.helpers.waiting import TIMEOUT_S
from tests.helpers.worker import Worker

pytestmark = pytest.mark.broker

PARTITIONS = 3
BLOCKED = 1
GROWN_S = 3.0


@pytest.fixture
def stamped(kafka_settings: Settings) -> Cluster:
    """Topics with the broker's timestamps."""
    return Cluster(kafka_settings.model_copy(update={"card_partitions": PARTITIONS, "timestamps": "broker"}))


def exported(worker: Worker) -> str:
    """The worker's metrics; empty while nobody serves metrics."""
    address = next((line.split()[-1] for line in worker.output.splitlines() if ", metrics on " in line), None)
    if address is None:
        return ""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=TIMEOUT_S) as response:
        return str(response.read().decode())


def oldest_undecided(worker: Worker) -> dict[tuple[str, int], float]:
    """The ages, by topic and partition."""
    return {
        (sample.labels["topic"], int(sample.labels["partition"])): sample.value
        for family in text_string_to_metric_families(exported(worker))
        for sample in family.samples
        if sample.name == "fraud_pipeline_oldest_undecided_seconds"
    }


def test_records_behind_an_open_transaction_age_until_it_is_aborted(stamped: Cluster, start: Starter) -> None:
    settings = stamped.settings
    name = settings.topic(TRANSACTIONS.name)
    places = {(name, number) for number in range(PARTITIONS)}
    worker = start(settings, agents="card")

    def written(numbers: range) -> None:
        """One transaction of a card for each partition, whatever partition the card belongs to."""
        for number in numbers:
            value = transaction(number, after(minutes=number), card_id=f"c{number}")
            stamped.write(TRANSACTIONS, value, f"c{number}".encode(), after(minutes=number), partition=number % 3)
        stamped.flush()

    def profiled() -> int:
        return sum(row_count(record.value) for record in stamped.read(PROFILED))

    written(range(9))
    worker.until(lambda: profiled() == 9)
    worker.until(lambda: places <= oldest_undecided(worker).keys())
    worker.until(lambda: set(oldest_undecided(worker).values()) == {0.0})

    held = {"transaction.timeout.ms": 900_000}  # longer than any test
    foreign = Producer(producer_config(stamped.bootstrap, transactional_id=settings.topic("foreign"), overrides=held))
    foreign.init_transactions()
    foreign.begin_transaction()
    foreign.produce(name, transaction(9, after(minutes=9)), b"c9", partition=BLOCKED)
    foreign.flush()
    written(range(10, 19))

    def blocked_s() -> float:
        # A measurement that a busy broker does not answer leaves no value.
        return oldest_undecided(worker).get((name, BLOCKED), 0.0)

    # Those of the other partitions, and what of them is passed on, are decided.
    worker.until(lambda: blocked_s() > GROWN_S)
    worker.until(lambda: all(age_s == 0 for at, age_s in oldest_undecided(worker).items() if at != (name, BLOCKED)))
    grown_s = max(GROWN_S, blocked_s())
    worker.until(lambda: blocked_s() > grown_s)
    assert profiled() < 18
    (command,) = shown("docs/operating.md", "$ curl")
    series, _ = command.shown.replace('"3"', f'"{BLOCKED}"').split()
    assert series in exported(worker).replace(settings.topic_prefix, "")

    foreign.abort_transaction()
    worker.until(lambda: profiled() == 18)
    worker.until(lambda: set(oldest_undecided(worker).values()) == {0.0})
    assert {topic for topic, _ in oldest_undecided(worker)} >= {name, settings.topic(ACCEPTED_LABELS.name)}
    assert worker.stop() == 0, worker.output
