"""Active versions on a real broker: what counts, what is refused, and what a worker that starts later finds."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipeline.engine.feedback.learn import LearnPartition, model_record
from pipeline.kafka.session.quarantine import control_record
from pipeline.kafka.writers.producer import RecordProducer
from pipeline.models.active import ModelSubscriber
from pipeline.models.publish import VersionToPublish, publish_active
from pipeline.models.rates import PublishedRates
from pipeline.observability.metrics import WorkerMetrics
from pipeline.scoring.lightgbm_model import LightGBMModel
from pipeline.scoring.payload import payload_digest
from pipeline.scoring.river_factory import new_learner
from pipeline.settings.rate_table import RatesError
from schemas.messages import Activation, VersionReference
from schemas.records import Output, Record
from schemas.topics import CONTROL, EXAMPLES, MODELS
from tests.helpers.champion import empty_model_set, policy
from tests.helpers.logs import after
from tests.helpers.models import example, small_model
from tests.helpers.topics import Cluster
from tests.unit.backtest.test_backtest_versions import ENCODE
from tests.unit.engine.test_engine_models import other_model
from tests.unit.protection.test_signing import key_pair

pytestmark = pytest.mark.broker

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CHAMPION = VersionToPublish("lightgbm", small_model().version, small_model().to_payload())
OTHER = VersionToPublish("lightgbm", other_model().version, other_model().to_payload())
GARBAGE = (b"[" * 5_000, b"\xff\xfe", b"{}", b"", None, b'{"name":"policy","version":"\xff"}')
Subscribers = Callable[[], ModelSubscriber]


def of_policy(threshold: float) -> VersionToPublish:
    version = policy(threshold)
    return VersionToPublish("policy", version.version, version.to_payload())


@pytest.fixture
def subscriber(cluster: Cluster) -> Iterator[Subscribers]:
    made: list[ModelSubscriber] = []

    def make() -> ModelSubscriber:
        made.append(ModelSubscriber(cluster.bootstrap, cluster.settings, empty_model_set(), WorkerMetrics()))
        return made[-1]

    yield make
    for item in made:
        item.close()


def write(cluster: Cluster, *outputs: Output) -> None:
    with RecordProducer(cluster.bootstrap, cluster.settings) as producer:
        for output in outputs:
            producer.produce(cluster.settings.topic(output.topic.name), output.key or b"", output.value or b"", 1)


def garbage(cluster: Cluster, key: bytes) -> None:
    for topic in (MODELS, CONTROL):
        for value in GARBAGE:
            cluster.write(topic, value, key, after())
    cluster.flush()


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


def rivers(*counts: int) -> list[tuple[str, Output]]:
    """Records of River versions, each of so many examples more."""
    learn, offset, found = LearnPartition(new_learner()), 0, []
    for count in counts:
        examples = [(n, ENCODE(example(n))) for n in range(offset, offset + count)]
        learn.learn([Record(EXAMPLES.name, 0, n, 0, b"", value) for n, value in examples])
        offset += count
        model = learn.publish()
        found.append((model.version, model_record("river", model.version, model.to_payload(), NOW)))
    return found


def test_all_versions_of_an_activation_count_at_once_and_garbage_counts_never(
    cluster: Cluster, subscriber: Subscribers
) -> None:
    live = subscriber()
    assert active(live) is None
    publish_active(cluster.bootstrap, cluster.settings, [CHAMPION, of_policy(0.3)])
    assert active(live) == (CHAMPION.version, 0.3)
    # Under the very keys of what is active: on a compacted topic that would have removed it.
    for key in (payload_digest(CHAMPION.payload).encode(), b"activation"):
        garbage(cluster, key)
    publish_active(cluster.bootstrap, cluster.settings, [OTHER, of_policy(0.4)])
    late = subscriber()
    assert active(live) == active(late) == (OTHER.version, 0.4)
    for item in (live, late):
        assert refused(item, cluster, CONTROL.name) == 2 * len(GARBAGE)
    # What cannot be used is refused whole: the policy beside it stays what it was.
    damaged = VersionToPublish("lightgbm", "0" * 12, b'{"kind":"lightgbm"}')
    publish_active(cluster.bootstrap, cluster.settings, [damaged, of_policy(0.5)])
    assert active(live) == active(subscriber()) == (OTHER.version, 0.4)


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


def test_an_activation_waits_for_its_content_and_holds_nobody_up(cluster: Cluster, subscriber: Subscribers) -> None:
    publish_active(cluster.bootstrap, cluster.settings, [CHAMPION, of_policy(0.3)])
    live = subscriber()
    assert active(live) == (CHAMPION.version, 0.3)
    # Kafka orders nothing between topics.
    write(cluster, activation(OTHER, of_policy(0.4)))
    assert active(live) == (CHAMPION.version, 0.3)
    # A later one that names some of the same goes first, and what it commits stays committed.
    publish_active(cluster.bootstrap, cluster.settings, [of_policy(0.5)])
    assert active(live) == (CHAMPION.version, 0.5)
    write(cluster, model_record(*of_policy(0.4), NOW), model_record(*OTHER, NOW))
    assert active(live) == active(subscriber()) == (OTHER.version, 0.5)


def test_content_that_does_not_have_its_digest_is_none(cluster: Cluster, subscriber: Subscribers) -> None:
    good = model_record(*of_policy(0.3), NOW)
    forged = Output(MODELS, good.key, (good.value or b"").replace(b'"threshold":0.3', b'"threshold":0.9'))
    assert forged.value != good.value
    write(cluster, forged, model_record(*CHAMPION, NOW), activation(CHAMPION, of_policy(0.3)))
    live = subscriber()
    assert active(live) is None
    write(cluster, good)
    assert active(live) == active(subscriber()) == (CHAMPION.version, 0.3)


def test_versions_that_no_trusted_key_signed_change_nothing(cluster: Cluster, tmp_path: Path) -> None:
    own = cluster.settings.model_copy(update={"signing_key_file": key_pair(tmp_path, "own")[0]})
    other = cluster.settings.model_copy(update={"signing_key_file": key_pair(tmp_path, "other")[0]})
    live = ModelSubscriber(cluster.bootstrap, own, empty_model_set(), WorkerMetrics())
    later = ModelSubscriber(cluster.bootstrap, own, empty_model_set(), WorkerMetrics())
    rates = PublishedRates(cluster.bootstrap, own)
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
    assert rates.versions == []
    publish_active(cluster.bootstrap, own, [of_policy(0.5)])
    assert active(live) == active(later) == (CHAMPION.version, 0.5)
    assert refused(live, cluster, CONTROL.name) == 3
    live.close()
    later.close()


def test_the_newest_river_version_counts_whatever_champion_is_active(cluster: Cluster, subscriber: Subscribers) -> None:
    live = subscriber()
    publish_active(cluster.bootstrap, cluster.settings, [CHAMPION, of_policy(0.3)])
    versions = rivers(5, 7, 9)

    def river(subscriber: ModelSubscriber) -> str:
        found = subscriber.catch_up(lambda: None).active
        assert found is not None
        return found.river.version

    assert river(live).endswith("@0")
    write(cluster, *(output for _, output in versions[:2]))
    # Many, behind which it must be looked for.
    cluster_garbage = Output(MODELS, b"river", b'{"name":"river"}')
    write(cluster, *[cluster_garbage] * 1_000)
    assert river(live) == river(subscriber()) == versions[1][0]
    publish_active(cluster.bootstrap, cluster.settings, [OTHER])
    assert river(live) == river(subscriber()) == versions[1][0]
    write(cluster, versions[2][1])
    assert river(live) == river(subscriber()) == versions[2][0]


def test_a_rate_table_is_believed_by_what_it_says(cluster: Cluster) -> None:
    rates = PublishedRates(cluster.bootstrap, cluster.settings)
    # Named, and not there; there, and no table.
    write(cluster, activation(VersionToPublish("rates", "v", table("9"))))
    bad = VersionToPublish(
        "rates", "w", b'{"version":"w","base":"EUR","currencies":{"EUR":{"digits":1000000000,"rate":"1"}}}'
    )
    publish_active(cluster.bootstrap, cluster.settings, [bad])
    garbage(cluster, b"rates")
    assert rates.publish(table("1.17")) is True
    (known,) = rates.versions
    assert rates.table(*known).currencies["GBP"].numerator == 117
    with pytest.raises(RatesError, match="does not hold"):
        rates.table("v", "0" * 16)
    again = PublishedRates(cluster.bootstrap, cluster.settings)
    assert again.publish(table("1.17")) is False
    assert again.versions == [known]
