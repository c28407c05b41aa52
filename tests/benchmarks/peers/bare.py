"""The limit: a loop on librdkafka batches as an experienced engineer writes it by hand, without safe state.

Windows are lists in memory with running sums: a restart loses them, and a rebalance would mix them up. Outputs are
flushed before offsets are committed, so that no transaction goes without a decision.
"""

import signal
from datetime import datetime

import msgspec
import numpy as np
import pandas as pd
from confluent_kafka import Consumer, KafkaException, Producer

from tests.benchmarks.job.definition import (
    HOME_COUNTRY,
    INPUTS,
    PROFILE,
    WINDOWS_MS,
    inputs_of_many,
    load_lightgbm,
    load_river,
)
from tests.benchmarks.peers.arguments import Arguments, arguments

BATCH = 4_000
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


def main(options: Arguments) -> None:
    """Poll, decode, profile, score, produce, flush, commit."""
    booster, river = load_lightgbm(options.workdir), load_river(options.workdir)
    decoder, encoder = msgspec.json.Decoder(Transaction), msgspec.json.Encoder()
    cards: dict[str, Card] = {}
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
            "queue.buffering.max.messages": 10 * BATCH,
        }
    )
    failures: list[object] = []

    def delivered(error: object, _message: object) -> None:
        if error is not None:
            failures.append(error)

    consumer.subscribe([options.input])
    running = [True]
    signal.signal(signal.SIGTERM, lambda *_: running.clear())
    while running:
        messages = consumer.consume(BATCH, 0.05)
        for message in messages:
            if message.error() is not None:
                raise KafkaException(message.error())
        if not messages:
            continue
        batch = [decoder.decode(message.value()) for message in messages]
        n = len(batch)
        time_ms = [round(1_000 * one.event_time.timestamp()) for one in batch]
        cents = [round(100 * one.amount) for one in batch]
        profiles = []
        for one, when, amount in zip(batch, time_ms, cents, strict=True):
            card = cards.get(one.card_id)
            if card is None:
                card = cards[one.card_id] = Card()
            profiles.append(card.profile(when, amount))
        rows = inputs_of_many(
            np.array(cents),
            np.array(time_ms),
            np.fromiter((float(one.mcc) for one in batch), float, n),
            np.fromiter((one.channel == "online" for one in batch), float, n),
            np.fromiter((one.country != HOME_COUNTRY for one in batch), float, n),
            np.array(profiles, float),
        )
        trees = booster.predict(rows)
        logistic = river.predict_proba_many(pd.DataFrame(rows, columns=INPUTS))[True].to_numpy()
        scores = (trees + logistic) / 2
        for one, message, score, tree, line, profile in zip(
            batch, messages, scores.tolist(), trees.tolist(), logistic.tolist(), profiles, strict=True
        ):
            decision = {
                "transaction_id": one.transaction_id,
                "card_id": one.card_id,
                "score": score,
                "lightgbm": tree,
                "river": line,
                **dict(zip(PROFILE, profile, strict=True)),
            }
            producer.produce(options.output, encoder.encode(decision), message.key(), on_delivery=delivered)
        if producer.flush(60) or failures:
            raise RuntimeError(f"decisions were not delivered: {failures[:1]}")
        consumer.commit(message=None, asynchronous=False)
    consumer.close()


if __name__ == "__main__":
    main(arguments())
