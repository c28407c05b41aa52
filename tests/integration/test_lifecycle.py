"""Workers that are stopped, killed, misled and left without a broker: nothing is lost, nothing is decided twice."""

import hashlib
import os
import random
import re
import shutil
import signal
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from confluent_kafka import Producer

from pipeline.broker import EmbeddedBroker, embedded_broker
from pipeline.engine.records.partitioner import partition_of
from pipeline.engine.scores.block_messages import read_messages
from pipeline.features.catalogue import CARD_FEATURES, KERNEL_VERSION
from pipeline.kafka.cluster.clients import producer_config
from pipeline.settings import Settings
from schemas.messages import Control, ProfiledTransaction, Quarantine, RecordPosition
from schemas.topics import CONTROL, DEAD_LETTERS, PROFILED, PROGRESS, REROUTED, TRANSACTIONS
from tests.helpers.expected import differences, expected_features
from tests.helpers.logs import after, block_of, microseconds, reason, transaction
from tests.helpers.topics import Cluster, Starter, keys, once, shop
from tests.helpers.worker import Worker

pytestmark = pytest.mark.broker

RESTORED = re.compile(r"(\w+: partition \d+): state restored in [\d.]+ s from (a snapshot|the log alone)")
"""An agent's partition in a worker's log, and what it was restored from."""


def check(cluster: Cluster, bought: dict[tuple[str, str], object]) -> None:
    """One decision for each transaction, with the features that the recorded log gives."""
    decisions = cluster.decisions()
    assert once(decisions)
    assert sorted(keys(decisions)) == sorted(bought)
    assert differences(cluster.features(), expected_features(cluster.read(PROFILED), cluster.read(PROGRESS))) == []


FAULTY = """
import sys

from pipeline.cli import main
from pipeline.engine.scores import decider

read_rows = decider.read_rows


def fail(records):
    assert not any(b"faulty" in (record.value or b"") for record in records)
    return read_rows(records)


decider.read_rows = fail
sys.exit(main())
"""
"""A worker whose score agent has a fault, which blocks of `failing` show."""


def failing(number: int) -> bytes:
    """A block that can be read, and that the score agent of a `FAULTY` worker fails on."""
    message = ProfiledTransaction(
        transaction_id=f"faulty-{number}",
        card_id="c1",
        merchant_id="m1",
        event_time_us=microseconds(after(1)),
        amount_base_minor=100,
        rates_version="1",
        counts=True,
        card_features=bytes(8 * len(CARD_FEATURES)),
        kernel=KERNEL_VERSION,
        case_id="case",
        case_sequence=1,
        source=RecordPosition(topic="transactions", partition=9, offset=number),
        ingested_at=datetime(2030, 1, 1, tzinfo=UTC),
        transaction=msgspec.Raw(transaction(number)),
    )
    return block_of(message)


def manifests(settings: Settings) -> list[Path]:
    return sorted((settings.data_dir / "snapshots").glob("*/*/*.json"))


def test_a_stop_keeps_the_state_and_a_start_goes_on_from_it(cluster: Cluster, start: Starter) -> None:
    cluster.publish()
    bought = shop(cluster, range(120), seed=1)
    cluster.flush()
    worker = start(cluster.settings)
    worker.until(lambda: len(cluster.decisions()) >= 120)
    reported = worker.output.replace(cluster.settings.topic_prefix, "")
    assert re.search(r"card: assigned accepted-labels \d.*; transactions \d", reported)
    # It begins behind the agents that decide.
    for number in range(cluster.settings.card_partitions):
        worker.until_it_says(f"feedback: partition {number}: state restored")
    assert worker.stop() == 0, worker.output
    assert manifests(cluster.settings)
    bought |= shop(cluster, range(120, 200), seed=2)
    cluster.flush()
    again = start(cluster.settings)
    again.until(lambda: len(cluster.decisions()) >= 200)
    for agent in ("card", "score", "feedback"):
        again.until_it_says(f"{agent}: partition 1: state restored")
        assert f"{agent}: partition 1: state restored in 0.0 s from the log" not in again.output
    assert again.stop() == 0, again.output
    check(cluster, bought)


def test_damaged_snapshots_are_reported_and_done_without(cluster: Cluster, start: Starter) -> None:
    cluster.publish()
    bought = shop(cluster, range(120), seed=1)
    cluster.flush()
    worker = start(cluster.settings)
    worker.until(lambda: len(cluster.decisions()) >= 120)
    assert worker.stop() == 0, worker.output
    noise = random.Random(5)
    files = [path for path in (cluster.settings.data_dir / "snapshots").rglob("*") if path.is_file()]
    for path in files:
        content = bytearray(path.read_bytes())
        content[noise.randrange(len(content))] ^= 0x40
        path.write_bytes(content)
    bought |= shop(cluster, range(120, 200), seed=2)
    cluster.flush()
    again = start(cluster.settings)
    again.until(lambda: len(cluster.decisions()) >= 200)
    assert "is not used (damaged)" in again.output
    # A partition that the group took away for a moment may come back from a snapshot that this worker made since.
    first = {part.group(1): part.group(2) for part in reversed([*RESTORED.finditer(again.output)])}
    assert first
    assert set(first.values()) == {"the log alone"}
    assert again.stop() == 0, again.output
    check(cluster, bought)


@pytest.mark.parametrize("received", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once_and_loses_nothing(
    cluster: Cluster, start: Starter, received: signal.Signals
) -> None:
    cluster.publish()
    bought = shop(cluster, range(1_500), seed=1)
    cluster.flush()
    worker = start(cluster.settings, batch_max_records=20)
    worker.until(lambda: len(cluster.decisions()) >= 100)
    worker.process.send_signal(received)
    worker.until_it_says(f"{received.name}: finishing the batch")
    worker.process.send_signal(received)
    assert worker.code() in (0, 128 + received), worker.output
    again = start(cluster.settings)
    again.until(lambda: len(cluster.decisions()) >= len(bought))
    assert again.stop() == 0, again.output
    check(cluster, bought)


def test_a_record_that_fails_is_quarantined_and_skipped_by_every_restore(cluster: Cluster, start: Starter) -> None:
    cluster.publish()
    bought = shop(cluster, range(100), seed=1)
    cluster.flush()
    worker = start(cluster.settings, "-c", FAULTY, "worker")
    worker.until(lambda: len(cluster.decisions()) >= 100)
    for partition in (0, 1):
        cluster.write(PROFILED, b"garbage", b"m1", after(1), partition=partition)
        cluster.write(PROFILED, failing(partition), b"m1", after(1), partition=partition)
    cluster.flush()
    bought |= shop(cluster, range(100, 150), seed=2)
    cluster.flush()
    worker.until(lambda: len(cluster.decisions()) >= 150)
    name = cluster.settings.topic(PROFILED.name)
    aside = [r for r in cluster.read(DEAD_LETTERS) if dict(r.headers)["dead-letter-error"] == b"set_aside"]
    assert sorted(record.value or b"" for record in aside) == [failing(0), failing(1)]
    unreadable = [r for r in cluster.read(DEAD_LETTERS) if reason(r, "error") == "unreadable"]
    assert [record.value for record in unreadable] == [b"garbage"] * 2
    for record in aside:
        headers = {key: (value or b"").decode() for key, value in record.headers}
        place = f"{name} partition {headers['dead-letter-partition']} offset {headers['dead-letter-offset']}"
        assert re.search(rf"{place} fails \(3 of 3 times\) of .+; nothing of it is committed", worker.output)
    control = [msgspec.json.decode(record.value or b"", type=Control) for record in cluster.read(CONTROL)]
    quarantined = [item for item in control if isinstance(item, Quarantine)]
    assert {(item.agent, item.position.topic, item.digest) for item in quarantined} == {
        ("score", "profiled", hashlib.sha256(failing(number)).hexdigest()) for number in (0, 1)
    }
    assert worker.stop() == 0, worker.output
    # A replay from the beginning meets the same records.
    bought |= shop(cluster, range(150, 200), seed=3)
    cluster.flush()
    again = start(cluster.settings, snapshot_url="")
    again.until(lambda: len(cluster.decisions()) >= 200)
    assert "fails" not in again.output
    assert again.stop() == 0, again.output
    decisions = cluster.decisions()
    assert once(decisions)
    assert sorted(keys(decisions)) == sorted(bought)


def test_blocks_of_another_kernel_end_no_worker_and_the_card_agent_s_are_kept(cluster: Cluster, start: Starter) -> None:
    cluster.publish()
    partition = partition_of("m1", cluster.settings.merchant_partitions)
    cluster.write(TRANSACTIONS, b"refused", b"c1", after(0), partition=0)
    bought = shop(cluster, range(60), seed=1)
    # The newest of its partition of transactions: no block of any other merchant shows a later one.
    bought[cluster.buy(1_000, after(minutes=7 * 60), merchant_id="m1")] = after(minutes=7 * 60)
    cluster.flush()
    worker = start(cluster.settings, quarantine_limit=1)
    worker.until(lambda: len(cluster.decisions()) >= 61)
    genuine = next(
        message
        for record in cluster.read(PROFILED)
        for message in read_messages(record.value)
        if isinstance(message, ProfiledTransaction) and message.transaction_id == "t1000"
    )
    source = genuine.source

    def of_another_kernel(merchant: str, **changes: int) -> bytes:
        """A block of a transaction that was read elsewhere, or later."""
        moved = msgspec.structs.replace(source, **changes)
        later = genuine.ingested_at + timedelta(days=1)
        return block_of(
            msgspec.structs.replace(
                genuine,
                transaction_id="t",
                merchant_id=merchant,
                kernel="0-other",
                source=moved,
                read=None,
                ingested_at=later,
            )
        )

    # Not read yet, of no partition, of a merchant of another partition, decided before: the card agent wrote none.
    merchants = (f"m{number}" for number in range(5))
    elsewhere = next(
        name for name in merchants if partition_of(name, cluster.settings.merchant_partitions) != partition
    )
    forged = [of_another_kernel("m1", offset=source.offset + 1_000_000 + number) for number in range(3)]
    forged += [of_another_kernel("m1", partition=99), of_another_kernel(elsewhere, offset=0), of_another_kernel("m1")]
    for value in forged:
        cluster.write(PROFILED, value, None, after(1), partition=partition)
    # Where its merchant belongs, but with the source of a transaction of another merchant.
    forged.append(of_another_kernel(elsewhere))
    home = partition_of(elsewhere, cluster.settings.merchant_partitions)
    cluster.write(PROFILED, forged[-1], None, after(1), partition=home)
    cluster.flush()
    worker.until(lambda: {*forged} <= {record.value for record in cluster.read(DEAD_LETTERS)})
    bought |= shop(cluster, range(60, 100), seed=2)
    cluster.flush()
    worker.until(lambda: len(cluster.decisions()) >= 101)
    assert "was profiled by kernel 0-other" in worker.output
    decisions, theirs = cluster.decisions(), {*forged}
    assert sorted(keys(decisions)) == sorted(bought)
    written = [record for record in cluster.read(PROFILED) if record.value not in theirs]
    assert differences(cluster.features(), expected_features(written, cluster.read(PROGRESS))) == []
    # As the card agent of another release would write it: it has read this record, and no block holds it.
    refused = b'{"merchant_id":"m1"}'
    cluster.write(TRANSACTIONS, refused, b"c1", after(0), partition=source.partition)
    cluster.flush()
    name = cluster.settings.topic(TRANSACTIONS.name)
    last = max(record.offset for record in cluster.read(TRANSACTIONS) if record.partition == source.partition)
    worker.until(lambda: cluster.committed("card", TRANSACTIONS)[name, source.partition] > last)
    undecided = of_another_kernel("m1", offset=last)
    cluster.write(PROFILED, undecided, None, after(1), partition=partition)
    cluster.flush()
    worker.until_it_says("the card agent wrote it, and this release cannot compute the rest of its features")
    # The other partitions go on.
    for number in range(100, 110):
        cluster.buy(number, after(minutes=7 * number), merchant_id=elsewhere)
    cluster.flush()
    worker.until(lambda: len(cluster.decisions()) >= len(decisions) + 10)
    assert worker.stop() == 0, worker.output
    assert undecided not in {record.value for record in cluster.read(DEAD_LETTERS)}
    assert cluster.committed("score", PROFILED)[cluster.settings.topic(PROFILED.name), partition] <= max(
        record.offset for record in cluster.read(PROFILED) if record.value == undecided
    )
    assert "FRAUD_PIPELINE_QUARANTINE_LIMIT" not in worker.output
    # A start is refused until a release that can has decided it.
    again = start(cluster.settings)
    assert again.code() == 1
    assert "ends with undecided records of another kernel version" in again.output


def test_records_of_any_size_stop_no_partition(cluster: Cluster, start: Starter) -> None:
    cluster.publish()
    bought = shop(cluster, range(50), seed=1)
    cluster.flush()
    # What a topic takes is limited as it is compressed: all of these are small to it, and none to whoever reads them.
    # They wait for each other, so that one batch holds both values.
    foreign = Producer(
        producer_config(
            cluster.bootstrap,
            overrides={
                "compression.type": "zstd",
                "linger.ms": 2_000,
                "message.max.bytes": 100_000_000,
                "batch.size": 50_000_000,
            },
        )
    )
    block = random.Random(3).randbytes(200_000)
    values = [b"A" * 9_000_000, block * 30]
    name = cluster.settings.topic(TRANSACTIONS.name)
    for value in values:
        foreign.produce(name, value, b"c1", partition=0)
    # A batch of it alone expands beyond what a producer may send.
    at = microseconds(after(1)) // 1_000
    attached = [("attached", b"A" * 40_000_000)]
    foreign.produce(name, transaction(1_000, after(1)), b"c1", partition=1, timestamp=at, headers=attached)
    assert foreign.flush(60.0) == 0
    bought |= shop(cluster, range(50, 100), seed=2)
    cluster.flush()
    worker = start(cluster.settings)
    worker.until(lambda: len(cluster.decisions()) >= 100)
    worker.until(lambda: len(cluster.read(DEAD_LETTERS)) >= 3)
    refused = [record for record in cluster.read(DEAD_LETTERS) if reason(record, "error") == "too_large"]
    assert [record.value for record in refused] == [None, None]
    digests = {reason(record, "value-sha256") for record in refused}
    assert digests == {hashlib.sha256(value).hexdigest() for value in values}
    (unread,) = [record for record in cluster.read(DEAD_LETTERS) if reason(record, "error") == "unreadable"]
    assert "larger than 16793600 bytes before compression" in reason(unread, "message")
    assert worker.stop() == 0, worker.output
    check(cluster, bought)


def test_too_many_failures_end_the_worker(cluster: Cluster, start: Starter) -> None:
    cluster.publish()
    for number in (0, 1):
        cluster.write(PROFILED, failing(number), b"m1", after(1), partition=0)
    cluster.flush()
    worker = start(cluster.settings, "-c", FAULTY, "worker", agents="score", quarantine_after=1, quarantine_limit=1)
    assert worker.code() == 1
    assert "FRAUD_PIPELINE_QUARANTINE_LIMIT raises the limit" in worker.output
    aside = cluster.read(DEAD_LETTERS)
    assert [record.value for record in aside] == [failing(0)]
    # Whoever starts it again loses no more records: the limit is not a process's, but a day's.
    again = start(cluster.settings, "-c", FAULTY, "worker", agents="score", quarantine_after=1, quarantine_limit=1)
    assert again.code() == 1
    assert "1 records were quarantined within a day" in again.output
    assert cluster.read(DEAD_LETTERS) == aside


def test_records_of_foreign_partitioners_and_without_keys_find_their_card(cluster: Cluster, start: Starter) -> None:
    cluster.publish()
    bought = shop(cluster, range(60), seed=1)
    for number in range(60, 120):
        at = after(minutes=7 * number)
        card = f"c{number % 12}"
        # Round and round, as a producer without a key does; every other one names its key all the same.
        cluster.write(
            TRANSACTIONS,
            transaction(number, at, card_id=card, merchant_id=f"m{number % 5}"),
            card.encode() if number % 2 else None,
            at,
            partition=number % 3,
        )
        bought[card, f"t{number}"] = at
    cluster.flush()
    worker = start(cluster.settings)
    worker.until(lambda: len(cluster.decisions()) >= 120)
    passed_on = cluster.read(REROUTED)
    assert 0 < len(passed_on) < 60
    assert worker.stop() == 0, worker.output
    check(cluster, bought)
    again = start(cluster.settings, snapshot_url="")
    bought |= shop(cluster, range(120, 160), seed=2)
    cluster.flush()
    again.until(lambda: len(cluster.decisions()) >= 160)
    assert again.stop() == 0, again.output
    check(cluster, bought)


def ready(worker: Worker) -> int:
    """The status of /readyz, 0 where nobody answers yet."""
    for line in worker.output.splitlines():
        if ", metrics on " in line:
            address = line.rpartition(", metrics on ")[2].strip()
            break
    else:
        return 0
    try:
        with urllib.request.urlopen(f"http://{address}/readyz", timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_a_broker_that_is_killed_is_ridden_out(tmp_path: Path, start: Starter) -> None:
    with embedded_broker(tmp_path / "kafka") as broker:
        cluster = Cluster(of_its_own(broker, tmp_path))
        cluster.publish()
        worker = start(cluster.settings)
        bought = shop(cluster, range(100), seed=1)
        cluster.flush()
        worker.until(lambda: len(cluster.decisions()) >= 100)
        worker.until(lambda: ready(worker) == 200)
        for round_ in range(2):
            first = 100 + 700 * round_
            bought |= shop(cluster, range(first, first + 700), seed=2 + round_)
            broker.kill()
            worker.until(lambda: ready(worker) == 503)
            broker.start()
            cluster.flush()
            expected = len(bought)
            worker.until(lambda expected=expected: len(cluster.decisions()) >= expected)  # type: ignore[misc]
            worker.until(lambda: ready(worker) == 200)
        assert worker.stop() == 0, worker.output
        check(cluster, bought)


def of_its_own(broker: EmbeddedBroker, directory: Path) -> Settings:
    return Settings(
        kafka_bootstrap_servers=broker.bootstrap_servers,
        data_dir=directory / "data",
        timestamps="producer",
        metrics_port=0,
        card_partitions=2,
        merchant_partitions=2,
    )


def test_two_workers_of_one_name_on_one_machine_are_refused(cluster: Cluster, start: Starter) -> None:
    cluster.publish()
    worker = start(cluster.settings)
    worker.until_it_says("card: joined")
    second = start(cluster.settings)
    assert second.code() == 1
    assert "runs already, in process" in second.output
    assert str(worker.process.pid) in second.output
    assert "--instance" in second.output
    assert "Traceback" not in second.output
    assert worker.stop() == 0, worker.output


def test_a_worker_that_stood_still_does_no_harm_when_it_goes_on(cluster: Cluster, start: Starter) -> None:
    cluster.publish()
    workers = [start(cluster.settings, instance=f"w{number}") for number in (1, 2)]
    for worker in workers:
        worker.until_it_says("card: joined")
        worker.until_it_says("score: joined")
    bought = shop(cluster, range(200), seed=1)
    cluster.flush()
    workers[0].until(lambda: len(cluster.decisions()) >= 200)
    bought |= shop(cluster, range(200, 900), seed=2)
    cluster.flush()
    os.kill(workers[0].process.pid, signal.SIGSTOP)
    bought |= shop(cluster, range(900, 1_000), seed=3)
    cluster.flush()
    workers[1].until(lambda: len(cluster.decisions()) >= len(bought))
    os.kill(workers[0].process.pid, signal.SIGCONT)
    bought |= shop(cluster, range(1_000, 1_100), seed=4)
    cluster.flush()
    workers[1].until(lambda: len(cluster.decisions()) >= len(bought))
    for worker in workers:
        assert worker.stop() == 0, worker.output
    check(cluster, bought)


def test_state_that_is_deleted_under_a_worker_ends_it_with_a_sentence(cluster: Cluster, start: Starter) -> None:
    cluster.publish()
    bought = shop(cluster, range(60), seed=1)
    cluster.flush()
    worker = start(cluster.settings)
    worker.until(lambda: len(cluster.decisions()) >= 60)
    # Out of the way first: the worker adds files to a directory that is being emptied.
    shutil.rmtree((cluster.settings.data_dir / "state").rename(cluster.settings.data_dir / "deleted"))
    assert worker.code() == 1
    assert "was removed while the worker ran; nothing is lost" in worker.output
    assert "start the worker again" in worker.output
    assert "Traceback" not in worker.output
    bought |= shop(cluster, range(60, 100), seed=2)
    cluster.flush()
    again = start(cluster.settings)
    again.until(lambda: len(cluster.decisions()) >= 100)
    assert again.stop() == 0, again.output
    check(cluster, bought)
