"""Records that claim another offset than the broker gave them hide no record of others, from no reader."""

import uuid
from typing import Final

import pytest
from confluent_kafka import Producer

from pipeline.engine.records.partitioner import partition_of
from pipeline.kafka.cluster.clients import producer_config
from pipeline.settings import Settings
from schemas.topics import DEAD_LETTERS, LABELS, TRANSACTIONS
from tests.helpers.batches import odd_batch, produce_batch, record_batch
from tests.helpers.logs import after, label, microseconds, reason, transaction
from tests.helpers.topics import Cluster, Starter, shop
from tests.integration.test_unreadable import check, check_programs, quarantined, write_raw

pytestmark = pytest.mark.broker

COMMITS: Final = 30
Bought = dict[tuple[str, str], object]


def write_odd(cluster: Cluster, number: int, deltas: list[int]) -> int:
    """Write a batch of transactions of one card, each with its claim; return the batch's offset."""
    at = after(minutes=7 * number)
    values = [transaction(number + n, at, card_id="c1") for n in range(len(deltas))]
    batch = odd_batch(values, deltas, key=b"c1", timestamp_ms=microseconds(at) // 1_000)
    return write_raw(cluster, partition_of("c1", 2), batch)


def buy(cluster: Cluster, bought: Bought, numbers: range) -> None:
    """Buy with the same card, as others do."""
    for number in numbers:
        bought[cluster.buy(number, after(minutes=7 * number), card_id="c1")] = number
    cluster.flush()


def buy_in_transactions(cluster: Cluster, bought: Bought, first: int) -> None:
    """Write many small transactions, and abort every third of them."""
    producer = Producer(producer_config(cluster.bootstrap, transactional_id=uuid.uuid4().hex))
    producer.init_transactions()
    for commit in range(COMMITS):
        producer.begin_transaction()
        for number in (first + 2 * commit, first + 2 * commit + 1):
            at = after(minutes=7 * number)
            producer.produce(
                cluster.settings.topic(TRANSACTIONS.name),
                transaction(number, at, card_id="c1"),
                b"c1",
                timestamp=microseconds(at) // 1_000,
            )
            if commit % 3:
                bought["c1", f"t{number}"] = number
        if commit % 3:
            producer.commit_transaction()
        else:
            producer.flush()
            producer.abort_transaction()


def test_records_that_claim_other_offsets_hide_nothing_and_are_quarantined(
    kafka_settings: Settings, start: Starter
) -> None:
    cluster = Cluster(kafka_settings.model_copy(update={"card_partitions": 2, "merchant_partitions": 2}))
    cluster.publish()
    bought: Bought = dict(shop(cluster, range(40), seed=1))
    cluster.flush()
    expected = []

    def odd(number: int, deltas: list[int], length: int) -> int:
        base = write_odd(cluster, number, deltas)
        expected.append(("card", partition_of("c1", 2), base, base + length))
        return base

    odd(100, [6], 1)
    buy(cluster, bought, range(101, 111))
    # Two that claim the same offset, with the same content.
    base = odd(120, [7], 1)
    assert odd(120, [6], 1) == base + 1
    buy(cluster, bought, range(121, 131))
    # One that claims the offset of its own honest copy.
    odd(143, [3], 1)
    buy(cluster, bought, range(141, 151))
    # All but the last one are where they claim to be, within their batch.
    odd(160, [1, 2, 3], 3)
    buy(cluster, bought, range(163, 170))
    buy_in_transactions(cluster, bought, 200)
    # At the end of the log.
    odd(300, [1_000], 1)

    worker = start(cluster.settings)
    worker.until(lambda: len(quarantined(cluster)) >= len(expected))
    worker.until(lambda: len(cluster.decisions()) >= len(bought))
    odd(310, [1_000], 1)
    worker.until(lambda: len(quarantined(cluster)) >= len(expected))
    buy(cluster, bought, range(311, 320))
    at = after(minutes=7 * 320)
    value = label(0, at, "fraud", transaction_id="t311", card_id="c1")
    stamp = microseconds(at) // 1_000
    name, number = cluster.settings.topic(LABELS.name), partition_of("c1", 2)
    base = produce_batch(cluster.bootstrap, name, number, odd_batch([value], [9], key=b"c1", timestamp_ms=stamp))
    produce_batch(cluster.bootstrap, name, number, record_batch([value], key=b"c1", timestamp_ms=stamp))
    expected.append(("label", number, base, base + 1))
    worker.until(lambda: len(quarantined(cluster)) >= len(expected))
    worker.until(lambda: len(cluster.decisions()) >= len(bought))
    worker.until(lambda: len(cluster.examples()) >= 1)
    assert worker.stop() == 0, worker.output
    assert quarantined(cluster) == sorted(expected)
    letters = [record for record in cluster.read(DEAD_LETTERS) if reason(record, "error") == "unreadable"]
    assert len(letters) == len(expected) == len(cluster.read(DEAD_LETTERS))
    check(cluster, bought)

    # From the log alone.
    buy(cluster, bought, range(330, 340))
    again = start(cluster.settings, snapshot_url="", data_dir=cluster.settings.data_dir / "again")
    again.until(lambda: len(cluster.decisions()) >= len(bought))
    assert again.stop() == 0, again.output
    check(cluster, bought)
    assert quarantined(cluster) == sorted(expected)

    # Programs read the same.
    check_programs(cluster, len(bought), len(bought))
