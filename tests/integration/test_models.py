"""Active versions on a real broker: what counts, what is refused, and what a worker that starts later finds."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipeline.kafka.session.quarantine import control_record
from pipeline.kafka.writers.producer import RecordProducer
from pipeline.models.active import ModelSubscriber
from pipeline.models.publish import VersionToPublish, publish_active
from pipeline.models.published_files import RATES, PublishedFiles
from pipeline.observability.metrics import WorkerMetrics
from pipeline.scoring.lightgbm_model import LightGBMModel
from pipeline.scoring.payload import payload_digest
from pipeline.settings.rate_table import RatesError
from schemas.messages import Activation, VersionReference
from schemas.records import Output
from schemas.topics import CONTROL, MODELS
from tests.helpers.champion import empty_model_set, policy
from tests.helpers.logs import after
from tests.helpers.models import small_model
from tests.helpers.topics import Cluster
from tests.unit.engine.test_engine_models import other_model
from tests.unit.protection.test_signing import key_pair

pytestmark = pytest.mark.broker

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CHAMPION = VersionToPublish("lightgbm", small_model().version, small_model().to_payload())
OTHER = VersionToPublish("lightgbm", other_model().version, other_model().to_payload())


def of_policy(threshold: float) -> VersionToPublish:
    version = policy(threshold)
    return VersionToPublish("policy", version.version, version.to_payload())


def write(cluster: Cluster, *outputs: Output) -> None:
    with RecordProducer(cluster.bootstrap, cluster.settings) as producer:
        for output in outputs:
            producer.produce(cluster.settings.topic(output.topic.name), output.key or b"", output.value or b"", 1)


def reference(content: VersionToPublish, offset: int = 0) -> VersionReference:
    name, version, payload = content
    return VersionReference(name=name, version=version, digest=payload_digest(payload), offset=offset)


def table(rate: str) -> bytes:
    currencies = {code: {"digits": 2, "rate": item} for code, item in (("EUR", "1"), ("GBP", rate))}
    return json.dumps({"version": "v", "base": "EUR", "currencies": currencies}).encode()


def activation(*contents: VersionToPublish, offset: int = 0) -> Output:
    return control_record(Activation(versions=[reference(content, offset) for content in contents], activated_at=NOW))


def active(subscriber: ModelSubscriber) -> tuple[str, float] | None:
    found = subscriber.catch_up(lambda: None).active
    return None if found is None else (found.lightgbm.version, found.policy.threshold)


def refused(subscriber: ModelSubscriber, cluster: Cluster, topic: str) -> float | None:
    name, labels = "fraud_pipeline_records_refused_total", {"topic": cluster.settings.topic(topic)}
    return subscriber._metrics.registry.get_sample_value(name, labels)


def test_a_version_that_was_trained_on_other_labels_is_used_with_a_warning(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    text = json.loads(CHAMPION.payload)["text"]
    model = LightGBMModel(text, metadata={"labels": {"regime": {"reported": "all"}}})
    settings = cluster.settings.model_copy(update={"label_regime": "frauds-only"})
    publish_active(
        cluster.bootstrap, settings, [VersionToPublish("lightgbm", model.version, model.to_payload()), of_policy(0.3)]
    )
    subscriber = ModelSubscriber(cluster.bootstrap, settings, empty_model_set(), WorkerMetrics())
    try:
        assert active(subscriber) == (model.version, 0.3)
    finally:
        subscriber.close()
    assert f"LightGBM {model.version} was trained where all transactions get labels" in caplog.text


def test_versions_that_no_trusted_key_signed_change_nothing(cluster: Cluster, tmp_path: Path) -> None:
    own = cluster.settings.model_copy(update={"signing_key_file": key_pair(tmp_path, "own")[0]})
    other = cluster.settings.model_copy(update={"signing_key_file": key_pair(tmp_path, "other")[0]})
    live = ModelSubscriber(cluster.bootstrap, own, empty_model_set(), WorkerMetrics())
    later = ModelSubscriber(cluster.bootstrap, own, empty_model_set(), WorkerMetrics())
    rates = PublishedFiles(cluster.bootstrap, own)
    publish_active(cluster.bootstrap, own, [CHAMPION, of_policy(0.3)])
    assert active(live) == (CHAMPION.version, 0.3)
    for forger in (cluster.settings, other):
        publish_active(
            cluster.bootstrap, forger, [OTHER, of_policy(0.4), VersionToPublish("rates", "forged", table("9"))]
        )
    # A forged content behind a good reference is none either, and what is signed goes on to count.
    write(cluster, activation(OTHER))
    assert active(live) == (CHAMPION.version, 0.3)
    rates.refresh()
    assert rates.versions(RATES) == []
    publish_active(cluster.bootstrap, own, [of_policy(0.5)])
    assert active(live) == active(later) == (CHAMPION.version, 0.5)
    assert refused(live, cluster, CONTROL.name) == 3
    live.close()
    later.close()


def test_a_rate_table_is_believed_by_what_it_says(cluster: Cluster) -> None:
    rates = PublishedFiles(cluster.bootstrap, cluster.settings)
    # Named, and not there; there, and no table.
    write(cluster, activation(VersionToPublish("rates", "v", table("9"))))
    bad = VersionToPublish(
        "rates", "w", b'{"version":"w","base":"EUR","currencies":{"EUR":{"digits":1000000000,"rate":"1"}}}'
    )
    publish_active(cluster.bootstrap, cluster.settings, [bad])
    for value in (b"[" * 5_000, b"\xff\xfe", b"{}", None):
        cluster.write(MODELS, value, b"rates", after())
    cluster.flush()
    assert rates.publish(RATES, table("1.17")) is True
    (known,) = rates.versions(RATES)
    assert rates.find(RATES, *known).currencies["GBP"].numerator == 117
    with pytest.raises(RatesError, match="does not hold"):
        rates.find(RATES, "v", "0" * 16)
    again = PublishedFiles(cluster.bootstrap, cluster.settings)
    assert again.publish(RATES, table("1.17")) is False
    assert again.versions(RATES) == [known]
