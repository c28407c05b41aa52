"""The topics of one test as programs outside see them, and what is bought there."""

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cache
from typing import Any

import msgspec
import numpy as np
from click.testing import CliRunner, Result
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from pipeline.cli import main
from pipeline.decision.policy import Policy
from pipeline.demo.processes import settings_environment
from pipeline.engine.scores.decision_records import read_feature_messages
from pipeline.kafka.cluster.admin import ensure_topics
from pipeline.kafka.cluster.clients import producer_config
from pipeline.kafka.cluster.errors import ClusterUnreachable, TopicError
from pipeline.kafka.readers.topic_reader import read_topic
from pipeline.models.publish import VersionToPublish, publish_active
from pipeline.settings import Settings
from schemas.messages import Alert, Decision, DecisionFeatures, Example, ModelVersion
from schemas.records import Record
from schemas.topics import ALERTS, DECISION_FEATURES, DECISIONS, EXAMPLES, LABELS, MODELS, TRANSACTIONS, Topic
from tests.helpers.champion import LARGE_AMOUNT, RULES, policy
from tests.helpers.logs import after, label, microseconds, transaction
from tests.helpers.models import small_model
from tests.helpers.offsets import committed_offsets
from tests.helpers.waiting import TIMEOUT_S, retried
from tests.helpers.worker import Worker

Key = tuple[str, str]
Starter = Callable[..., Worker]


@cache
def shared_producer(bootstrap: str) -> Producer:
    """A producer for all tests, whose `flush` raises what was not written: a new one waits half a second for its id."""
    return Producer(producer_config(bootstrap, overrides={"on_delivery": raise_failure}))


def raise_failure(error: KafkaError | None, _message: Message) -> None:
    """For ``on_delivery``."""
    if error is not None:
        raise KafkaException(error)


def command(settings: Settings, *arguments: str, typed: str | None = None, code: int | None = None) -> Result:
    """Run ``fraud-pipeline ARGUMENTS`` in this process; with ``code``, it has to end with it."""
    result = CliRunner().invoke(main, arguments, env=settings_environment(settings), input=typed)
    assert code in (None, result.exit_code), f"{arguments}: {result.output} {result.exception!r}"
    return result


class Cluster:
    """The topics of one test, as programs outside see them."""

    def __init__(self, settings: Settings) -> None:
        assert settings.kafka_bootstrap_servers is not None
        self.settings, self.bootstrap = settings, settings.kafka_bootstrap_servers
        retried(lambda: ensure_topics(self.bootstrap, settings), ClusterUnreachable, TopicError)
        self._producer = Producer(producer_config(self.bootstrap, settings=settings))

    def write(
        self,
        topic: Topic,
        value: bytes | None,
        key: bytes | None,
        at: datetime,
        headers: Sequence[tuple[str, bytes | None]] = (),
        partition: int | None = None,
    ) -> None:
        where = {} if partition is None else {"partition": partition}
        self._producer.produce(
            self.settings.topic(topic.name),
            value,
            key,
            timestamp=microseconds(at) // 1_000,
            headers=list(headers),
            **where,
        )

    def flush(self) -> None:
        assert self._producer.flush(TIMEOUT_S) == 0

    def command(self, *arguments: str, code: int | None = None) -> Result:
        return command(self.settings, *arguments, code=code)

    def buy(self, number: int, at: datetime, **fields: Any) -> Key:
        """Write a transaction; returns what identifies it."""
        card = str(fields.get("card_id", "c1"))
        self.write(TRANSACTIONS, transaction(number, at, **fields), card.encode(), at)
        return card, f"t{number}"

    def say(self, key: Key, at: datetime, known: str = "fraud", **fields: Any) -> None:
        card, name = key
        value = label(0, at, known, **{"transaction_id": name, "card_id": card, **fields})
        self.write(LABELS, value, card.encode(), at)

    def publish(self, item: Policy | None = None) -> None:
        versions = VersionToPublish.from_models(small_model(), item or policy(), RULES)
        publish_active(self.bootstrap, self.settings, versions)

    def read(self, topic: Topic) -> list[Record]:
        return list(read_topic(self.bootstrap, self.settings.topic(topic.name), settings=self.settings))

    def decisions(self) -> list[Decision]:
        return [msgspec.json.decode(record.value or b"", type=Decision) for record in self.read(DECISIONS)]

    def features(self) -> list[DecisionFeatures]:
        """Features of every decision."""
        found = [message for record in self.read(DECISION_FEATURES) for message in read_feature_messages(record.value)]
        assert {item.source for item in found} == {decision.source for decision in self.decisions()}
        return found

    def alerts(self) -> list[Alert]:
        return [msgspec.json.decode(record.value or b"", type=Alert) for record in self.read(ALERTS)]

    def examples(self) -> list[Example]:
        return [msgspec.json.decode(record.value or b"", type=Example) for record in self.read(EXAMPLES)]

    def versions(self, name: str) -> list[str]:
        messages = [msgspec.json.decode(record.value or b"", type=ModelVersion) for record in self.read(MODELS)]
        return [message.version for message in messages if message.name == name]

    def committed(self, group: str, topic: Topic) -> dict[tuple[str, int], int]:
        name = self.settings.topic
        return committed_offsets(self.bootstrap, name(group), [name(topic.name)], settings=self.settings)


def keys(decisions: Sequence[Decision]) -> list[Key]:
    return [(decision.card_id, decision.transaction_id) for decision in decisions]


def once(decisions: Sequence[Decision]) -> bool:
    return max(Counter(keys(decisions)).values()) == 1


def shop(cluster: Cluster, numbers: range, seed: int) -> dict[Key, datetime]:
    """A few cards at a few merchants, some minutes apart, a large amount now and then; returns when."""
    random = np.random.default_rng(seed)
    bought: dict[Key, datetime] = {}
    for number in numbers:
        at = after(minutes=7 * number)
        large = number % 25 == 24
        key = cluster.buy(
            number,
            at,
            card_id=f"c{random.integers(12)}",
            merchant_id=f"m{random.integers(5)}",
            amount=LARGE_AMOUNT + number if large else round(float(random.lognormal(3, 0.6)), 2),
            transaction_type=str(random.choice(["purchase", "purchase", "cash", "refund"])),
        )
        bought[key] = at
    return bought
