"""The limit: a loop on librdkafka batches as an experienced engineer writes it by hand, without safe state.

Windows are lists in memory with running sums: a restart loses them, and a rebalance would mix them up. Each second
the outputs are flushed and then the offsets committed, so that no transaction goes without a decision.
"""

import signal
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer

from tests.benchmarks.job.definition import (
    HOME_COUNTRY,
    INPUTS,
    WINDOWS_MS,
    inputs_of_many,
    load_lightgbm,
    load_river,
)
from tests.benchmarks.peers.arguments import Arguments, arguments

BATCH = 4_000
COMMIT_EVERY_S = 1.0
TRIM = 64


class Transaction(msgspec.Struct, gc=False):
    """The fields that the job needs; others are skipped by the decoder."""

    transaction_id: str
    event_time: datetime
    card_id: str
    amount: float
    channel: str
    country: str
    mcc: str


class Decision(msgspec.Struct, gc=False):
    """The answer."""

    transaction_id: str
    card_id: str
    score: float
    lightgbm: float
    river: float
    count_1d: int
    count_7d: int
    count_30d: int
    mean_1d: float
    mean_7d: float
    mean_30d: float


class Card:
    """A card's transactions in order, and for each window where it begins and its sum."""

    __slots__ = ("cents", "starts", "sums", "times_ms")

    def __init__(self) -> None:
        self.times_ms: list[int] = []
        self.cents: list[int] = []
        self.starts = [0, 0, 0]
        self.sums = [0, 0, 0]

    def profile(self, time_ms: int, cents: int) -> tuple[float, ...]:
        """Counts and means of the windows at ``time_ms``; then the transaction enters."""
        times_ms, amounts, starts, sums = self.times_ms, self.cents, self.starts, self.sums
        n = len(times_ms)
        counts, means = [], []
        for k, window_ms in enumerate(WINDOWS_MS):
            start, bound = starts[k], time_ms - window_ms
            while start < n and times_ms[start] <= bound:
                sums[k] -= amounts[start]
                start += 1
            starts[k] = start
            counts.append(n - start)
            means.append(sums[k] / (100 * (n - start)) if n > start else 0.0)
            sums[k] += cents
        times_ms.append(time_ms)
        amounts.append(cents)
        if starts[2] > TRIM:
            gone = starts[2]
            del times_ms[:gone], amounts[:gone]
            self.starts = [start - gone for start in starts]
        return (*counts, *means)


class Scorer:
    """Both models, and the windows of all cards."""

    def __init__(self, workdir: Path) -> None:
        self._booster, self._river = load_lightgbm(workdir), load_river(workdir)
        self._decoder = msgspec.json.Decoder(Transaction)
        self._cards: dict[str, Card] = {}

    def decide(self, messages: Sequence[Message]) -> list[Decision]:
        """One decision for each message, in their order."""
        batch = [self._decoder.decode(message.value()) for message in messages]
        n, cards = len(batch), self._cards
        times_ms = [round(1_000 * item.event_time.timestamp()) for item in batch]
        cents = [round(100 * transaction.amount) for transaction in batch]
        profiles = []
        for transaction, time_ms, amount in zip(batch, times_ms, cents, strict=True):
            card = cards.get(transaction.card_id)
            if card is None:
                card = cards[transaction.card_id] = Card()
            profiles.append(card.profile(time_ms, amount))
        rows = inputs_of_many(
            np.array(cents),
            np.array(times_ms),
            np.fromiter((float(item.mcc) for item in batch), float, n),
            np.fromiter((item.channel == "online" for item in batch), float, n),
            np.fromiter((item.country != HOME_COUNTRY for item in batch), float, n),
            np.array(profiles, float),
        )
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
