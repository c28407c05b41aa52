"""The replay against a real broker: what lies in the topics afterwards, and how it waits."""

import json
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from confluent_kafka import Consumer, Producer

from pipeline.broker import EmbeddedBroker
from pipeline.cli import main
from pipeline.kafka.cluster.admin import end_offsets, ensure_topics
from pipeline.kafka.cluster.errors import TopicError
from pipeline.kafka.readers.topic_reader import read_topic
from pipeline.kafka.writers.producer import DeliveryFailed, RecordProducer
from pipeline.learning.regimes import LabelRegime
from pipeline.replay.messages import ENCODER, event_times_us, identities_of, transaction_messages
from pipeline.replay.replayer import Replay, ReplayOptions, ReplayProgress, Row
from pipeline.settings import Settings
from pipeline.settings.rate_table import load_rates
from pipeline.simulation.simulator import make_profiles, simulate_days
from schemas.codec import timestamp_us
from schemas.mapping import Mapper, read_mapping
from schemas.messages import Label, Transaction
from schemas.records import Record
from schemas.times import EPOCH
from schemas.topics import ALERTS, LABELS, TRANSACTIONS
from tests.chaos.arithmetic import partition_of
from tests.helpers.features import labels_known
from tests.helpers.mappings import CENTS
from tests.helpers.offsets import committed_offsets
from tests.helpers.waiting import TIMEOUT_S, eventually

pytestmark = pytest.mark.broker

DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return simulate_days(make_profiles(np.random.default_rng(1), 60, 120), 1, 20, 4)


@pytest.fixture
def settings(kafka_settings: Settings) -> Settings:
    ensure_topics(str(kafka_settings.kafka_bootstrap_servers), kafka_settings, (TRANSACTIONS, LABELS, ALERTS))
    return kafka_settings


def frames(frame: pd.DataFrame) -> Iterator[pd.DataFrame]:
    for _, day in frame.groupby(frame["event_time"].dt.date):
        yield day.reset_index(drop=True)


def replay(settings: Settings, frame: pd.DataFrame, **options: object) -> ReplayProgress:
    chosen = ReplayOptions(**{"wait": False, "regime": LabelRegime(delay_days=1.0), **options})  # type: ignore[arg-type]
    return Replay(settings, str(settings.kafka_bootstrap_servers), frames(frame), chosen).run()


def records(settings: Settings, name: str) -> list[Record]:
    return list(read_topic(str(settings.kafka_bootstrap_servers), settings.topic(name), settings=settings))


def transactions_of(settings: Settings) -> list[tuple[Record, Transaction]]:
    decode = msgspec.json.Decoder(Transaction).decode
    return [(record, decode(record.value or b"")) for record in records(settings, "transactions")]


def labels_of(settings: Settings) -> list[tuple[Record, Label]]:
    decode = msgspec.json.Decoder(Label).decode
    return [(record, decode(record.value or b"")) for record in records(settings, "labels")]


def milliseconds(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(milliseconds=1)


def test_transactions_and_labels_lie_in_the_order_of_the_simulated_clock(
    settings: Settings, frame: pd.DataFrame
) -> None:
    progress = replay(settings, frame)
    found = transactions_of(settings)
    assert progress.transactions == len(found) == len(frame)
    by_partition = defaultdict(list)
    for record, message in found:
        assert record.timestamp_ms == milliseconds(message.event_time)
        assert record.key == message.card_id.encode()
        assert record.partition == partition_of(message.card_id, settings.card_partitions)
        by_partition[record.partition].append(message.event_time)
    assert len(by_partition) == 4
    assert all(times == sorted(times) for times in by_partition.values())
    expected = frame.set_index("transaction_id")
    for _, message in found:
        row = expected.loc[message.transaction_id]
        assert (message.event_time, message.card_id, message.merchant_id) == (
            row["event_time"],
            row["card_id"],
            row["merchant_id"],
        )
        assert message.amount.scaleb(2) == Decimal(str(row["amount_minor"]))
        assert message.currency == "EUR"

    found_labels = labels_of(settings)
    assert progress.labels == len(found_labels) == len(frame)
    assert len({message.transaction_id for _, message in found_labels}) == len(frame)
    for record, label in found_labels:
        row = expected.loc[label.transaction_id]
        assert label.labelled_at == row["event_time"] + DAY
        assert record.timestamp_ms == milliseconds(label.labelled_at)
        assert (label.label, label.fraud_type) == (
            ("fraud", row["fraud_type"]) if row["fraud"] else ("legitimate", None)
        )
        assert label.source == "simulator"
    assert progress.fraud_labels == expected["fraud"].sum() > 0


def test_labels_keep_step_with_the_transactions(settings: Settings, frame: pd.DataFrame) -> None:
    progress = replay(settings, frame, flush_labels=False)
    last = frame["event_time"].iloc[-1]
    due = set(frame.loc[frame["event_time"] + DAY <= last, "transaction_id"])
    assert {message.transaction_id for _, message in labels_of(settings)} == due
    assert progress.labels == len(due)
    assert progress.pending_labels == len(frame) - len(due)
    assert progress.simulated_time == last


def test_only_the_reported_share_of_frauds_is_labelled(settings: Settings, frame: pd.DataFrame) -> None:
    frauds = int(frame["fraud"].sum())
    regime = LabelRegime(
        reported="frauds-only", delay_days=1.0, delay_spread=1.0, never_reported=0.5, corrected_share=0.3
    )
    progress = replay(settings, frame, regime=regime)
    found = labels_of(settings)
    assert len(found) == progress.labels
    assert 0 < len({message.transaction_id for _, message in found}) < frauds
    times_us = event_times_us(frame)
    fraud, identity = frame["fraud"].to_numpy(bool), identities_of(frame)
    known_us = regime.known_at_us(times_us, fraud, identity)
    due = labels_known(known_us, fraud, regime.corrected_at_us(known_us, identity))
    names = frame["transaction_id"].iloc[due.row]
    # Some say the opposite first, and are corrected.
    assert set(due.fraud.tolist()) == {False, True}
    reported = [(label.transaction_id, timestamp_us(label.labelled_at), label.label == "fraud") for _, label in found]
    assert sorted(reported) == sorted(zip(names, due.known_at_us.tolist(), due.fraud.tolist(), strict=True))


def test_a_frame_without_truth_gets_no_labels(settings: Settings, frame: pd.DataFrame) -> None:
    assert replay(settings, frame.drop(columns=["fraud", "fraud_type"])).labels == 0


def test_speed_is_kept(settings: Settings, frame: pd.DataFrame) -> None:
    simulated_s = (frame["event_time"].iloc[-1] - frame["event_time"].iloc[0]).total_seconds()
    progress = replay(settings, frame, speed=simulated_s / 2, flush_labels=False)
    assert progress.elapsed_s >= 2.0
    assert progress.transactions == len(frame)


def test_it_stays_near_the_card_agent(settings: Settings, frame: pd.DataFrame) -> None:
    servers, topic, group = (
        str(settings.kafka_bootstrap_servers),
        settings.topic("transactions"),
        settings.topic("card"),
    )
    ended, ahead = threading.Event(), []

    def consume() -> None:
        consumer = Consumer(
            {
                "bootstrap.servers": servers,
                "group.id": group,
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
            }
        )
        consumer.subscribe([topic])
        try:
            while not ended.is_set():
                if consumer.consume(20, 0.05):
                    # Taken before the commit, so that nothing can be sent on the strength of it.
                    ends = sum(end_offsets(servers, [topic]).values())
                    ahead.append(ends - sum(committed_offsets(servers, group, [topic]).values()))
                    consumer.commit(asynchronous=False)
        finally:
            consumer.close()

    worker = threading.Thread(target=consume)
    worker.start()
    try:
        progress = replay(settings, frame, wait=True, max_in_flight=60)
    finally:
        ended.set()
        worker.join()
    assert progress.transactions == len(frame)
    assert 20 < max(ahead) <= 60


def test_rows_that_were_encoded_before_are_sent_like_frames(settings: Settings, frame: pd.DataFrame) -> None:
    def parts() -> Iterator[Sequence[Row]]:
        rows = feeder.rows(frame)
        yield from (rows[first : first + 7] for first in range(0, len(rows), 7))

    options = ReplayOptions(wait=False, regime=LabelRegime(delay_days=1.0))
    feeder = Replay(settings, str(settings.kafka_bootstrap_servers), parts(), options)
    progress = feeder.run()
    assert progress.transactions == len(frame) > 100
    assert progress.labels == len(frame)
    expected = sorted(ENCODER.encode(message) for message in transaction_messages(frame, event_times_us(frame)))
    assert sorted(record.value or b"" for record in records(settings, TRANSACTIONS.name)) == expected


def test_without_a_reader_it_says_so_and_can_be_stopped(settings: Settings, frame: pd.DataFrame) -> None:
    stop, warnings = threading.Event(), []

    def report(progress: ReplayProgress) -> None:
        # On a busy machine there is a warning before it is known how much may be sent.
        if progress.warning is not None and progress.transactions == 25:
            warnings.append(progress.warning)
            stop.set()

    progress = Replay(
        settings,
        str(settings.kafka_bootstrap_servers),
        frames(frame),
        ReplayOptions(max_in_flight=25, stall_warning_s=0.5),
        report=report,
        stop=stop,
        report_interval_s=0.1,
    ).run()
    assert progress.stopped
    assert progress.transactions == 25
    assert "start `fraud-pipeline worker`, or replay with --no-wait" in warnings[0]
    assert progress.labels == 0


def test_an_endless_stream_ends_when_it_is_stopped(settings: Settings) -> None:
    stop = threading.Event()

    def endless() -> Iterator[pd.DataFrame]:
        profiles = make_profiles(np.random.default_rng(0), 30, 60)
        for day in range(10_000):
            if day == 3:
                stop.set()
            yield simulate_days(profiles, 0, day, 1)

    progress = Replay(
        settings, str(settings.kafka_bootstrap_servers), endless(), ReplayOptions(wait=False), stop=stop
    ).run()
    assert progress.stopped
    assert len(transactions_of(settings)) == progress.transactions > 0


def test_alerted_transactions_are_reviewed_sooner_and_once(settings: Settings, frame: pd.DataFrame) -> None:
    servers = str(settings.kafka_bootstrap_servers)
    alerted: list[dict[str, Any]] = frame.iloc[[10, 200]].to_dict("records")  # type: ignore[assignment]
    producer = Producer({"bootstrap.servers": servers})
    stop, raised = threading.Event(), threading.Event()

    def report(progress: ReplayProgress) -> None:
        # Alerts are followed from the start of the replay on, so they are raised when it runs.
        if progress.transactions > 200 and not raised.is_set():
            raised.set()
            for row in alerted:
                alert = {
                    "alert_id": f"alert-{row['transaction_id']}",
                    "card_id": row["card_id"],
                    "transaction_id": row["transaction_id"],
                    "event_time": row["event_time"].isoformat(),
                }
                for _ in range(2):
                    producer.produce(settings.topic("alerts"), json.dumps(alert), row["card_id"])
            assert producer.flush(TIMEOUT_S) == 0
            # A replay that waits for nobody may end before it has read them.
            eventually(lambda: feeder._alerts is not None and len(feeder._alerts.waiting) == 2 * len(alerted))

    simulated_s = (frame["event_time"].iloc[-1] - frame["event_time"].iloc[0]).total_seconds()
    options = ReplayOptions(
        speed=simulated_s / 4,
        wait=False,
        review_delay_s=3_600.0,
        regime=LabelRegime(reported="frauds-only", delay_days=10.0),
    )
    feeder = Replay(settings, servers, frames(frame), options, report=report, stop=stop, report_interval_s=0.01)
    progress = feeder.run()
    found = labels_of(settings)
    reviewed = {message.transaction_id: (record, message) for record, message in found if message.source == "analyst"}
    assert set(reviewed) == {row["transaction_id"] for row in alerted}
    for row in alerted:
        record, message = reviewed[row["transaction_id"]]
        assert message.alert_id == f"alert-{row['transaction_id']}"
        assert message.label == ("fraud" if row["fraud"] else "legitimate")
        assert row["event_time"] + timedelta(hours=1) <= message.labelled_at < row["event_time"] + 10 * DAY
        assert record.timestamp_ms == milliseconds(message.labelled_at)
    assert len({message.transaction_id for _, message in found}) == len(found)
    assert progress.reviews == 2
    assert progress.unmatched_alerts == 2
    assert progress.labels == len(found) == len(set(frame[frame["fraud"]]["transaction_id"]) | set(reviewed))


def test_topics_must_exist_and_keep_the_clock(kafka_settings: Settings, frame: pd.DataFrame) -> None:
    with pytest.raises(TopicError, match="fraud-pipeline topics"):
        replay(kafka_settings, frame)
    live = kafka_settings.model_copy(update={"timestamps": "broker"})
    ensure_topics(str(live.kafka_bootstrap_servers), live, (TRANSACTIONS, LABELS))
    with pytest.raises(TopicError, match="FRAUD_PIPELINE_TIMESTAMPS=producer"):
        replay(live, frame)


def test_frames_out_of_order_are_refused(settings: Settings, frame: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="not in event-time order"):
        Replay(
            settings,
            str(settings.kafka_bootstrap_servers),
            reversed(list(frames(frame))),
            ReplayOptions(wait=False),
        ).run()


def test_a_record_that_is_refused_is_an_error(settings: Settings) -> None:
    producer = RecordProducer(str(settings.kafka_bootstrap_servers), settings)
    producer.produce(settings.topic("labels"), b"c", b"{}", 0)
    producer.flush()
    # More than the topic takes, and not compressible.
    producer.produce(settings.topic("labels"), b"c", np.random.default_rng(0).bytes(LABELS.max_message_bytes + 1), 0)
    with pytest.raises(DeliveryFailed, match=r"a record for topic .*labels was not written"):
        producer.flush()


def test_the_command_feeds_a_foreign_file_and_sums_up(
    settings: Settings, frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = frame.drop(columns=["amount", "fraud_type"]).rename(columns={"amount_minor": "amount"})
    foreign.loc[7, "amount"] = 0
    foreign.to_csv(path := tmp_path / "foreign.csv", index=False)
    content = CENTS + b'fraud = { path = "fraud", values = { True = "1", False = "0" } }\n'
    (mapping := tmp_path / "mapping.toml").write_bytes(content)
    monkeypatch.setenv("FRAUD_PIPELINE_TOPIC_PREFIX", settings.topic_prefix)
    arguments = ["replay", str(path), "--bootstrap", str(settings.kafka_bootstrap_servers), "--mapping", str(mapping)]
    arguments += ["--no-wait", "--label-delay", "12h", "--from", frame["event_time"].iloc[5].isoformat()]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    # Rows of the same second as the first one stay, and one is refused.
    taken = foreign[(frame["event_time"] >= frame["event_time"].iloc[5]) & (foreign["amount"] > 0)]
    assert summary["transactions"] == summary["labels"] == len(taken) > 100
    assert summary["fraud_labels"] == taken["fraud"].sum() > 0
    assert summary["labels_not_sent"] == 0
    assert f"{len(taken):,} transactions" in result.stderr
    assert "left out 1 transaction that workers refuse (amount_zero 1); the first is row 8:" in result.stderr
    mapper = Mapper(read_mapping(content), load_rates(settings))
    rows = pd.read_csv(path, dtype=str).loc[taken.index].to_dict("records")
    sent = [mapper.mapped(json.dumps(row).encode()) for row in rows]
    assert sorted(sent) == sorted(record.value or b"" for record in records(settings, "transactions"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.csv"], "there is no file absent.csv"),
        (["a.csv", "--mapping", "absent.toml"], "File 'absent.toml' does not exist"),
        (["a.csv", "--speed", "0"], "no speed"),
        (["a.csv", "--label-delay", "soon"], "no duration"),
        (["a.csv", "--from", "monday"], "no time"),
    ],
)
def test_the_command_refuses_nonsense(broker: EmbeddedBroker, arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(main, ["replay", "--bootstrap", broker.bootstrap_servers, *arguments])
    assert result.exit_code != 0
    assert message in result.stderr
