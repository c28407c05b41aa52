"""Record batches that nobody can read stop no partition, and every reader skips the same of them."""

import base64
import random
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Final

import pyarrow.dataset as ds
import pytest

from pipeline.broker import EmbeddedBroker
from pipeline.engine.records.partitioner import partition_of
from pipeline.kafka.cluster.clients import GroupProtocol
from pipeline.kafka.cluster.errors import TopicError
from pipeline.kafka.readers.topic_reader import read_batches, read_topic
from pipeline.kafka.records.inflation import MOST_BATCH_BYTES
from pipeline.kafka.session.quarantine import decode_control
from pipeline.settings import Settings
from schemas.codec import MAX_VALUE_BYTES
from schemas.messages import Quarantine
from schemas.topics import (
    ALERTS,
    CONTROL,
    DEAD_LETTERS,
    DECISION_FEATURES,
    DECISIONS,
    MODELS,
    PROFILED,
    PROGRESS,
    TRANSACTIONS,
    Topic,
)
from tests.helpers.backtest_inputs import backtest_of
from tests.helpers.batches import COMPRESSIONS, damage_batch, produce_batch, record_batch, with_payload
from tests.helpers.expected import differences, expected_features
from tests.helpers.logs import after, microseconds, reason, transaction
from tests.helpers.topics import Cluster, Starter, keys, once, shop
from tests.helpers.waiting import TIMEOUT_S
from tests.integration.test_session import Numbers, session

pytestmark = pytest.mark.broker

CAP_BYTES: Final = 2_000_000
CAP: Final = {"receive.message.max.bytes": str(CAP_BYTES)}
"""A small cap makes small bombs; the real one is three times as large as what is written here, and tested below."""
RECORDS: Final = 3


def bomb(compression: str, size: int = CAP_BYTES) -> bytes:
    """A batch whose values, of ``size`` bytes each, expand beyond the cap."""
    return record_batch([b"a" * size] * RECORDS, compression)


def leftover(compression: str) -> bytes:
    """A batch with bytes behind its compressed records, which brokers do not look at."""
    batch = record_batch([b"a" * 200] * RECORDS, compression)
    return with_payload(batch, batch[61:] + bytes(20), compression)


def twofold(compression: str, at: int = 300, records: int = RECORDS) -> bytes:
    """A batch whose records are compressed in two parts, one behind the other; the second one begins at a byte."""
    plain = record_batch([b"a" * 200] * records)[61:]
    compress = COMPRESSIONS[compression]
    return with_payload(record_batch([b""] * records), compress(plain[:at]) + compress(plain[at:]), compression)


UNREADABLE: Final[tuple[Callable[[], bytes], ...]] = (
    *(partial(bomb, compression, MOST_BATCH_BYTES // RECORDS) for compression in COMPRESSIONS if compression != "none"),
    lambda: leftover("lz4"),
    lambda: twofold("snappy_xerial"),
    lambda: twofold("gzip", 1),
    lambda: twofold("gzip", 300),
)


FIRST_RECORD_BYTES: Final = len(record_batch([b"a" * 200])) - 61
"""Where the first record of `twofold` ends: librdkafka would deliver it, and skip the others without a word."""


def write_raw(cluster: Cluster, partition: int, batch: bytes) -> int:
    return produce_batch(cluster.bootstrap, cluster.settings.topic(TRANSACTIONS.name), partition, batch)


def quarantined(cluster: Cluster) -> list[tuple[str, int, int, int | None]]:
    """Agent, partition, first offset and end of every quarantine, sorted."""
    items = [decode_control(record.value or b"") for record in cluster.read(CONTROL) if record.value != b"garbage"]
    found = [(item.agent, item.position) for item in items if isinstance(item, Quarantine)]
    return sorted((agent, at.partition, at.offset, at.end) for agent, at in found)


def check(cluster: Cluster, bought: dict[tuple[str, str], object]) -> None:
    """One decision for each transaction, with the features that the recorded log gives."""
    decisions = cluster.decisions()
    assert once(decisions)
    assert sorted(keys(decisions)) == sorted(bought)
    written = ([r for r in cluster.read(topic) if r.value != b"garbage"] for topic in (PROFILED, PROGRESS))
    assert differences(cluster.features(), expected_features(*written)) == []


def with_odd_header(values: list[bytes], at: datetime) -> bytes:
    """A batch of records with a header whose name is not UTF-8."""
    batch = record_batch(values, key=b"c1", timestamp_ms=microseconds(at) // 1_000, headers=[("zzzz", b"1")])
    return with_payload(batch, batch[61:].replace(b"zzzz", b"\xff\xfe\xed\xa0"), "none")


def largest_batches(at: datetime, first: int) -> list[tuple[int, bytes]]:
    """The largest legitimate batches of every codec with the number of records of each, of card c1."""
    room = MAX_VALUE_BYTES - len(transaction(0, at, attributes={"note": ""})) - 10
    found = []
    for number, compression in enumerate(COMPRESSIONS):
        # One that no codec makes smaller; of zstd, which alone is limited, as much as a producer may send at once.
        noise = base64.b64encode(random.Random(number).randbytes(MAX_VALUE_BYTES)).decode()
        for notes in [[noise[:room]], *([["a" * room] * 16] if compression.startswith("zstd") else [])]:
            values = [transaction(first + n, at, attributes={"note": note}) for n, note in enumerate(notes)]
            first += len(values)
            batch = record_batch(values, compression, key=b"c1", timestamp_ms=microseconds(at) // 1_000)
            found.append((len(values), batch))
    return found


def test_unreadable_batches_are_quarantined_as_ranges_and_skipped_by_all(
    broker: EmbeddedBroker, kafka_settings: Settings, start: Starter
) -> None:
    """Others are decided: the largest of every codec too, and one with a header whose name is not UTF-8."""
    changes = {"card_partitions": 4, "merchant_partitions": 2}
    cluster = Cluster(kafka_settings.model_copy(update=changes))
    name = cluster.settings.topic(TRANSACTIONS.name)
    cluster.publish()
    bought: dict[tuple[str, str], object] = dict(shop(cluster, range(60), seed=1))
    cluster.flush()
    expected = []
    for number, make in enumerate(UNREADABLE):
        base = write_raw(cluster, number % 4, make())
        expected.append(("card", number % 4, base, base + RECORDS))
    parted = {number % 4: base}
    # Those that nobody could decompress, and those that the broker's disk has damaged.
    for partition, compression in ((0, "none"), (1, "lz4")):
        base = write_raw(cluster, partition, record_batch([transaction(900 + n) for n in range(RECORDS)], compression))
        damage_batch(broker.data_dir / "log", name, partition, base)
        expected.append(("card", partition, base, base + RECORDS))
    expected.sort()
    home, at = partition_of("c1", 4), after(minutes=7 * 60)
    write_raw(cluster, home, with_odd_header([transaction(1_000, at), b"garbage"], at))
    bought["c1", "t1000"] = at
    largest = largest_batches(at, first=1_001)
    for _, batch in largest:
        write_raw(cluster, home, batch)
    bought |= {("c1", f"t{1_001 + number}"): at for number in range(sum(count for count, _ in largest))}
    bought |= shop(cluster, range(60, 120), seed=2)
    cluster.flush()

    with pytest.raises(TopicError, match="no agent has quarantined that"):
        cluster.read(TRANSACTIONS)
    with pytest.raises(TopicError, match=r"\(it is not one gzip member\) and no agent has quarantined that"):
        list(read_topic(cluster.bootstrap, name, settings=cluster.settings, partitions=[*parted], start=parted))

    worker = start(cluster.settings)
    worker.until(lambda: len(cluster.decisions()) >= len(bought))
    worker.until(lambda: len(quarantined(cluster)) >= len(expected))
    assert worker.stop() == 0, worker.output
    assert quarantined(cluster) == expected
    letters = [record for record in cluster.read(DEAD_LETTERS) if reason(record, "error") == "unreadable"]
    assert (
        sorted(("card", *(int(reason(r, source)) for source in ("partition", "offset", "end"))) for r in letters)
        == expected
    )
    assert {(record.key, record.value) for record in letters} == {(None, None)}
    assert [reason(r, "error") for r in cluster.read(DEAD_LETTERS) if r not in letters] == ["not_json"]
    check(cluster, bought)

    # From the log alone.
    bought |= shop(cluster, range(120, 180), seed=3)
    cluster.flush()
    again = start(cluster.settings, snapshot_url="", data_dir=cluster.settings.data_dir / "again")
    again.until(lambda: len(cluster.decisions()) >= len(bought))
    assert again.stop() == 0, again.output
    check(cluster, bought)
    assert quarantined(cluster) == expected

    # Programs skip the same.
    check_programs(cluster, len(bought), len(bought) + 1)


def check_programs(cluster: Cluster, decided: int, readable: int) -> None:
    """A backtest decides as was decided, and exports have what can be read."""
    assert len(cluster.read(TRANSACTIONS)) == readable
    backtest = backtest_of(order="recorded", compare_live=True, settings=cluster.settings)
    backtest.run()
    assert backtest.comparison is not None
    assert (backtest.comparison.compared, backtest.comparison.differences) == (decided, [])
    out = cluster.settings.data_dir / "export"
    cluster.command("export", str(out), "transactions", code=0)
    assert ds.dataset(out, format="parquet", exclude_invalid_files=True).count_rows() == readable


def test_a_batch_of_control_that_a_disk_has_damaged_refuses_the_start(
    broker: EmbeddedBroker, cluster: Cluster, start: Starter
) -> None:
    cluster.publish()
    bought = shop(cluster, range(5), seed=1)
    cluster.flush()
    name = cluster.settings.topic(CONTROL.name)
    base = produce_batch(cluster.bootstrap, name, 0, record_batch([b"an approval"]))
    damage_batch(broker.data_dir / "log", name, 0, base)
    refused = start(cluster.settings)
    assert refused.code() == 1, refused.output
    assert f"the disk of its leader has damaged offsets {base} to {base}" in refused.output
    assert "FRAUD_PIPELINE_ACCEPT_DAMAGED_CONTROL=true" in refused.output
    assert "Traceback" not in refused.output
    accepting = start(cluster.settings, accept_damaged_control=True)
    accepting.until(lambda: len(cluster.decisions()) >= len(bought))
    assert accepting.stop() == 0, accepting.output


def test_an_unreadable_batch_on_an_internal_topic_keeps_no_worker_from_starting(
    cluster: Cluster, start: Starter
) -> None:
    """Start-up checks read ``profiled`` and ``features`` before the agent runs that is to quarantine it."""
    cluster = Cluster(cluster.settings.model_copy(update={"kafka_config": CAP}))
    cluster.publish()
    bought = shop(cluster, range(30), seed=1)
    cluster.flush()
    worker = start(cluster.settings)
    worker.until(lambda: len(cluster.decisions()) >= 30)
    assert worker.stop() == 0, worker.output
    expected = []
    batches = {("score", PROFILED): (bomb("zstd"), RECORDS)}
    batches["feedback", DECISION_FEATURES] = twofold("gzip", FIRST_RECORD_BYTES, 20_000), 20_000
    for (agent, topic), (batch, count) in batches.items():
        base = produce_batch(cluster.bootstrap, cluster.settings.topic(topic.name), 1, batch)
        expected.append((agent, 1, base + count))
    # Whoever starts reads these too.
    for topic in (CONTROL, MODELS, PROGRESS, PROFILED):
        name = cluster.settings.topic(topic.name)
        produce_batch(cluster.bootstrap, name, 0, with_odd_header([b"garbage"], after(1)))
    bought |= shop(cluster, range(30, 60), seed=2)
    cluster.flush()
    again = start(cluster.settings)
    again.until(lambda: len(quarantined(cluster)) >= len(expected))
    again.until(lambda: len(cluster.decisions()) >= 60)
    assert again.stop() == 0, again.output
    # The second range begins where the client stood: behind the batch before, or behind its transaction's mark.
    assert [(agent, partition, end) for agent, partition, _, end in quarantined(cluster)] == sorted(expected)
    check(cluster, bought)


@pytest.mark.parametrize("protocol", ["consumer", "classic"])
def test_a_session_passes_over_an_unreadable_batch_once_what_stands_before_it_is_committed(
    kafka_settings: Settings, protocol: GroupProtocol
) -> None:
    cluster = Cluster(kafka_settings.model_copy(update={"card_partitions": 2}))
    name = cluster.settings.topic(TRANSACTIONS.name)
    for partition in (0, 1):
        write_raw(cluster, partition, record_batch([b"before"] * 2))
        within = record_batch([b"within"] * 5, "lz4")
        more = bytes(20) if partition == 1 else b""
        base = write_raw(cluster, partition, with_payload(within, within[61:] + more, "lz4"))
        write_raw(cluster, partition, record_batch([b"behind"] * 2))
    handler = Numbers()
    found = []
    with session(cluster.settings, handler, protocol) as reading:
        deadline_s = time.monotonic() + TIMEOUT_S
        while len(handler.committed.get(1, [])) < 4 or len(handler.committed.get(0, [])) < 9:
            assert time.monotonic() < deadline_s, handler.committed
            if (batch := reading.poll(0.1)) is None:
                continue
            if batch.unreadable is not None:
                found.append(batch.unreadable)
                assert batch.records == []
                assert reading.committed[name, 1] == base
                handler.pending[1] = []
            reading.commit(batch, handler.process(batch))
        assert reading.committed[name, 1] == base + 7
    assert [(range_.partition, range_.start, range_.end) for range_ in found] == [((name, 1), base, base + 5)]
    assert handler.committed == {}
    assert [record.value for record in cluster.read(DECISIONS) if record.value == b"within"] == [b"within"] * 5


@pytest.mark.parametrize(
    "topic", [CONTROL, MODELS, PROGRESS, DECISIONS, ALERTS, DEAD_LETTERS], ids=lambda topic: topic.name
)
def test_an_unreadable_batch_on_a_topic_of_the_pipeline_is_refused(cluster: Cluster, topic: Topic) -> None:
    settings = cluster.settings.model_copy(update={"kafka_config": CAP})
    name = settings.topic(topic.name)
    parted = twofold("gzip", FIRST_RECORD_BYTES)
    for batch in (record_batch([b"before"]), bomb("zstd"), parted, record_batch([b"behind"])):
        produce_batch(cluster.bootstrap, name, 0, batch)
    refused: list[str] = []
    reading = read_batches(cluster.bootstrap, name, settings=settings, partitions=[0], on_refused=refused.append)
    assert [record.value for records in reading for record in records] == [b"before", b"behind"]
    assert refused == [name, name]
