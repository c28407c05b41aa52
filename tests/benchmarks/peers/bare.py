"""The limit: a loop on librdkafka batches as an experienced engineer writes it by hand, without safe state.

Windows are lists in memory with running sums: a restart loses them, and a rebalance would mix them up. Each second
the outputs are flushed and then the offsets committed, so that no transaction goes without a decision.
"""

import signal
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pandas as pd
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer

from tests.benchmarks.job.definition import INPUTS, load_lightgbm, load_river
from tests.benchmarks.job.windows import Card, Decision, Transaction, inputs_of_batch
from tests.benchmarks.peers.arguments import Arguments, arguments

BATCH = 4_000
COMMIT_EVERY_S = 1.0


class Scorer:
    """Both models, and the windows of all cards."""

    def __init__(self, workdir: Path) -> None:
        self._booster, self._river = load_lightgbm(workdir), load_river(workdir)
        self._decoder = msgspec.json.Decoder(Transaction)
        self._cards: dict[str, Card] = {}

    def decide(self, messages: Sequence[Message]) -> list[Decision]:
        """One decision for each message, in their order."""
        batch = [self._decoder.decode(message.value()) for message in messages]
        times_ms = [round(1_000 * item.event_time.timestamp()) for item in batch]
        cents = [round(100 * transaction.amount) for transaction in batch]
        profiles = []
        for transaction, time_ms, amount in zip(batch, times_ms, cents, strict=True):
            card = self._cards.get(transaction.card_id)
            if card is None:
                card = self._cards[transaction.card_id] = Card()
            profiles.append(card.profile(time_ms, amount))
        rows = inputs_of_batch(batch, times_ms, cents, profiles)
        trees = self._booster.predict(rows)
        lines = self._river.predict_proba_many(pd.DataFrame(rows, columns=INPUTS))[True].to_numpy()
        scores = (trees + lines) / 2
        return [
            Decision(transaction.transaction_id, transaction.card_id, score, tree, line, *profile)
            for transaction, score, tree, line, profile in zip(
                batch, scores.tolist(), trees.tolist(), lines.tolist(), profiles, strict=True
            )
        ]


def main(options: Arguments) -> None:
    """Poll, decode, profile, score, produce; each second flush and commit."""
    scorer, encoder = Scorer(options.workdir), msgspec.json.Encoder()
    consumer = Consumer(
        {
            "bootstrap.servers": options.bootstrap_servers,
            "group.id": options.group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
    )
    producer = Producer(
        {
            "bootstrap.servers": options.bootstrap_servers,
            "partitioner": "murmur2",
            "enable.idempotence": True,
            "linger.ms": 5,
            "queue.buffering.max.messages": 500_000,
            "delivery.report.only.error": True,
        }
    )
    failures: list[object] = []

    def failed(error: object, _message: object) -> None:
        failures.append(error)

    consumer.subscribe([options.input])
    running = [True]
    signal.signal(signal.SIGTERM, lambda *_: running.clear())
    commit_at_s = time.monotonic() + COMMIT_EVERY_S
    while running:
        messages = consumer.consume(BATCH, 0.05)
        for message in messages:
            if message.error() is not None:
                raise KafkaException(message.error())
        if messages:
            for message, decision in zip(messages, scorer.decide(messages), strict=True):
                producer.produce(options.output, encoder.encode(decision), message.key(), on_delivery=failed)
        producer.poll(0)
        if time.monotonic() > commit_at_s:
            commit_batch(producer, consumer, failures)
            commit_at_s = time.monotonic() + COMMIT_EVERY_S
    commit_batch(producer, consumer, failures)
    consumer.close()


def commit_batch(producer: Producer, consumer: Consumer, failures: list[object]) -> None:
    """Wait until every decision is delivered, then commit what was consumed."""
    if producer.flush(60) or failures:
        raise RuntimeError(f"decisions were not delivered: {failures[:1]}")
    try:
        consumer.commit(asynchronous=False)
    except KafkaException as error:
        if error.args[0].code() != KafkaError._NO_OFFSET:  # nothing was consumed since the last commit
            raise


if __name__ == "__main__":
    main(arguments())
