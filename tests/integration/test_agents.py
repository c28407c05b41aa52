"""The agents as workers run them: real processes, a real broker, whatever producers may send."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from pipeline.models.publish import VersionToPublish, publish_active
from pipeline.protection.signing import Trust
from pipeline.settings import Settings
from schemas.messages import Alert, Decision
from schemas.records import Record
from schemas.topics import CONTROL, DEAD_LETTERS, LABELS, MODELS, PROFILED, TRANSACTIONS
from tests.helpers.champion import LARGE_AMOUNT
from tests.helpers.expected import differences, expected_features
from tests.helpers.logs import after, transaction
from tests.helpers.models import small_model
from tests.helpers.topics import Cluster, Key, Starter, command, keys, shop
from tests.helpers.worker import FAUST
from tests.unit.protection.test_signing import key_pair, secret_file

pytestmark = pytest.mark.broker


def bad_transactions(at: datetime) -> dict[str, bytes | None]:
    return {
        "null_value": None,
        "too_large": transaction(1, at, note="x" * 2_000_000),
        "not_utf8": b'{"transaction_id": "\xff"}',
        "not_json": b"\x00\x01 garbage",
        "missing_field": transaction(1, at, amount=None),
        "wrong_type": b"[]",
        "invalid_value": transaction(1, at, event_time="yesterday"),
        "currency_unknown": transaction(1, at, currency="XXX"),
        "amount_not_finite": transaction(1, at, amount="NaN"),
        "amount_negative": transaction(1, at, amount=-5),
        "event_time_in_future": transaction(1, at + timedelta(days=400)),
    }


def test_good_and_bad_records_labels_and_a_restart(cluster: Cluster, start: Starter, tmp_path: Path) -> None:
    keys_of = {"signing_key_file": key_pair(tmp_path, "own")[0], "snapshot_keys": secret_file(tmp_path, "1")}
    keys_of |= {"deployment": "test"}
    cluster.settings = cluster.settings.model_copy(update=keys_of)
    cluster.publish()
    bought: dict[Key, datetime] = {}
    bad = bad_transactions(after(hours=3))
    headers = (("trace", b"0af7"), ("empty", None))
    for step, (name, value) in enumerate(bad.items()):
        bought |= shop(cluster, range(10 * step, 10 * step + 10), seed=step)
        cluster.write(TRANSACTIONS, value, f"key of {name}".encode(), after(hours=3), headers)
    cluster.write(LABELS, b"no label", None, after(hours=3))
    cluster.flush()
    sent = [transaction for transaction in cluster.read(TRANSACTIONS) if (transaction.key or b"").startswith(b"c")]
    # The earliest ones: a repeat with an arrival before its event time would be refused.
    for record in sorted(sent, key=lambda record: record.timestamp_ms)[:5]:
        cluster.write(TRANSACTIONS, record.value, record.key, after(hours=4))
    cluster.flush()

    worker = start(cluster.settings)
    worker.until(lambda: len(cluster.decisions()) >= len(bought) and len(cluster.read(DEAD_LETTERS)) > len(bad))
    first = cluster.decisions()
    assert sorted(keys(first)) == sorted(bought)
    check_dead_letters(cluster.read(DEAD_LETTERS), bad, headers)
    check_alerts(cluster.alerts(), first)
    assert {decision.versions.lightgbm for decision in first} == {small_model().version}
    assert {decision.versions.river.rpartition("@")[2] for decision in first} == {"0"}

    # Labels: each alert is a fraud; a few others are reported, one of them before its transaction.
    reported = {key for key in bought if int(key[1][1:]) % 25 == 24} | set(list(bought)[3:8])
    early = ("c1", "t500")
    for key in sorted(reported | {early}):
        cluster.say(key, after(1))
    cluster.flush()
    worker.until(lambda: len(cluster.examples()) >= len(reported) and cluster.versions("river") != [])
    assert all(example.label == "fraud" and example.revision == 0 for example in cluster.examples())
    bought |= shop(cluster, range(300, 340), seed=77)
    cluster.flush()
    worker.until(lambda: len(cluster.decisions()) >= len(bought))
    # Stopped in the middle of its work.
    bought |= shop(cluster, range(340, 380), seed=78)
    cluster.flush()
    assert worker.stop() == 0, worker.output

    # While nobody runs, more comes in, and somebody publishes a champion that cannot be used.
    damaged = VersionToPublish("lightgbm", "0" * 12, b'{"kind":"lightgbm"}')
    publish_active(cluster.bootstrap, cluster.settings, [damaged])
    bought |= shop(cluster, range(380, 420), seed=79)
    cluster.flush()
    again = start(cluster.settings)
    again.until(lambda: len(cluster.decisions()) >= len(bought))
    bought[cluster.buy(500, after(2), card_id="c1", merchant_id="m1", amount=31)] = after(2)
    cluster.flush()
    again.until(lambda: early in {(example.card_id, example.transaction_id) for example in cluster.examples()})
    assert again.stop() == 0, again.output

    decisions = cluster.decisions()
    assert sorted(keys(decisions)) == sorted(bought)
    assert differences(cluster.features(), expected_features(cluster.read(PROFILED))) == []
    assert any(feature.features["merchant_known_fraud_30d"] for feature in cluster.features())
    after_restart = [decision for decision in decisions if int(decision.transaction_id[1:]) >= 380]
    assert {decision.versions.river for decision in after_restart} <= set(cluster.versions("river"))
    assert {decision.versions.lightgbm for decision in after_restart} == {small_model().version}
    assert "is refused" in again.output
    check_alerts(cluster.alerts(), decisions)
    taught_about = Counter((example.card_id, example.transaction_id) for example in cluster.examples())
    assert taught_about == Counter(reported | {early})
    assert len(cluster.read(DEAD_LETTERS)) == len(bad) + 1
    # All that agents and programs wrote there was signed, and snapshots were.
    trust = Trust.from_settings(cluster.settings)
    for topic in (MODELS, CONTROL):
        assert [trust.refusal(record) for record in cluster.read(topic)] == [None] * len(cluster.read(topic))
    assert "from a snapshot" in again.output


def check_dead_letters(
    found: Sequence[Record], bad: dict[str, bytes | None], headers: Sequence[tuple[str, bytes | None]]
) -> None:
    by_code = {dict(record.headers)["dead-letter-error"].decode(): record for record in found if record.key}  # type: ignore[union-attr]
    assert by_code.keys() == bad.keys()
    for code, record in by_code.items():
        # What is larger than any record may be is not repeated.
        assert record.value == (None if code == "too_large" else bad[code])
        assert record.key == f"key of {code}".encode()
        assert record.headers[: len(headers)] == tuple(headers)
        reason = {name: (value or b"").decode() for name, value in record.headers[len(headers) :]}
        assert reason["dead-letter-topic"].endswith("transactions")
        assert int(reason["dead-letter-offset"]) >= 0
        assert reason["dead-letter-message"]
    (bad_label,) = [record for record in found if not record.key]
    assert (bad_label.key, bad_label.value) == (None, b"no label")


def check_alerts(alerts: Sequence[Alert], decisions: Sequence[Decision]) -> None:
    alerted = {
        (decision.card_id, decision.transaction_id): decision for decision in decisions if decision.action == "alert"
    }
    assert alerted
    assert sorted((alert.card_id, alert.transaction_id) for alert in alerts) == sorted(alerted)
    assert {decision.transaction_id for decision in decisions if decision.amount_base >= LARGE_AMOUNT} <= {
        alert.transaction_id for alert in alerts
    }
    for alert in alerts:
        decision = alerted[alert.card_id, alert.transaction_id]
        assert (alert.score, alert.log, alert.versions) == (decision.score, decision.log, decision.versions)
        assert alert.reasons
        assert all(reason.code and reason.sentence for reason in alert.reasons)


def test_faust_s_own_command_starts_a_worker_that_waits_for_a_champion(cluster: Cluster, start: Starter) -> None:
    bought = shop(cluster, range(20), seed=1)
    cluster.flush()
    worker = start(cluster.settings, *FAUST)
    worker.until_it_says("no LightGBM version is active; publish one with `fraud-pipeline train --publish`")
    assert cluster.decisions() == []
    cluster.publish()
    worker.until(lambda: len(cluster.decisions()) >= 20)
    assert sorted(keys(cluster.decisions())) == sorted(bought)
    assert worker.stop() == 0, worker.output


def test_an_unknown_agent_is_refused() -> None:
    result = command(Settings(), "worker", "scorer", code=2)
    assert "'scorer' is not one of 'card', 'feedback', 'label', 'learn', 'score'" in result.stderr
