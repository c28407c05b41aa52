"""A worker that comes back to ten minutes of backlog, with the largest records that are accepted among them."""

import random

import psutil
import pytest

from pipeline.engine.encoding.blocks import MOST_BYTES, MOST_ROWS, row_count
from pipeline.kafka.cluster.admin import end_offsets
from schemas.codec import MAX_VALUE_BYTES
from schemas.topics import DEAD_LETTERS, DECISIONS, PROFILED, TRANSACTIONS
from tests.helpers.logs import after, transaction
from tests.helpers.topics import Cluster, Starter, keys

pytestmark = pytest.mark.broker

RATE_PER_S, SECONDS = 20, 600
LARGE_EVERY = 300
MOST_GROWTH_BYTES = 500 * 1024 * 1024
"""Most that the worker's memory grows by, above that of an idle one."""


def test_a_backlog_of_ten_minutes_is_decided_once_in_bounded_batches_and_memory(
    cluster: Cluster, start: Starter
) -> None:
    cluster.publish()
    worker = start(cluster.settings)
    worker.until_it_says("learn: joined")
    idle_bytes = psutil.Process(worker.process.pid).memory_info().rss
    assert worker.stop() == 0, worker.output

    sent = [(f"c{number % 5_000}", f"t{number}") for number in range(RATE_PER_S * SECONDS)]
    text = random.Random(0)
    for number, (card, identity) in enumerate(sent):
        at = after(seconds=number / RATE_PER_S)
        note = {"note": text.randbytes((MAX_VALUE_BYTES - 1_000) // 2).hex()} if number % LARGE_EVERY == 0 else {}
        value = transaction(number, at, transaction_id=identity, card_id=card, merchant_id=f"m{number % 700}", **note)
        cluster.write(TRANSACTIONS, value, card.encode(), at)
    cluster.flush()

    again = start(cluster.settings)
    process = psutil.Process(again.process.pid)
    decisions, most_bytes = cluster.settings.topic(DECISIONS.name), 0

    def decided() -> bool:
        nonlocal most_bytes
        most_bytes = max(most_bytes, process.memory_info().rss)
        return sum(end_offsets(cluster.bootstrap, [decisions], settings=cluster.settings).values()) >= len(sent)

    again.until(decided)
    again.until(lambda: len(cluster.read(DECISIONS)) >= len(sent))
    assert again.stop() == 0, again.output
    assert sorted(keys(cluster.decisions())) == sorted(sent)
    assert cluster.read(DEAD_LETTERS) == []
    blocks = cluster.read(PROFILED)
    counts = [row_count(block.value) for block in blocks]
    assert sum(counts) == len(sent)
    assert max(counts) <= MOST_ROWS
    assert all(len(block.value or b"") <= MOST_BYTES for block, rows in zip(blocks, counts, strict=True) if rows > 1)
    assert most_bytes - idle_bytes < MOST_GROWTH_BYTES
