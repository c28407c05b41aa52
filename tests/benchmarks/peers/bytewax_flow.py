"""Bytewax: Kafka in batches, ``stateful_map`` by card, and ``flat_map_batch`` where work on a batch is cheaper.

Recovery is on: state is written to SQLite every 10 seconds, and a restart goes on from there, at-least-once.
"""

import signal
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import msgspec
import numpy as np
import pandas as pd
from bytewax import operators as op
from bytewax.connectors.kafka import KafkaSinkMessage, KafkaSourceMessage
from bytewax.connectors.kafka import operators as kop
from bytewax.dataflow import Dataflow
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.run import cli_main

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

BATCH = 1_000
"""The connector's default, which its documentation recommends for throughput."""
SNAPSHOT_INTERVAL = timedelta(seconds=10)


class Transaction(msgspec.Struct, gc=False):
    """The fields that the job needs."""

    transaction_id: str
    event_time: datetime
    card_id: str
    amount: float
    channel: str
    country: str
    mcc: str


@dataclass
class Windows:
    """A card's transactions of 30 days, in order; for each window its start in them and its sum."""

    events: list[tuple[int, int]] = field(default_factory=list)
    starts: list[int] = field(default_factory=lambda: [0, 0, 0])
    sums: list[int] = field(default_factory=lambda: [0, 0, 0])


Profiled = tuple[Transaction, int, int, tuple[float, ...]]


def profiled(windows: Windows | None, transaction: Transaction) -> tuple[Windows, Profiled]:
    """Counts and means of the card's windows; then the transaction enters."""
    windows = windows or Windows()
    time_ms = round(1_000 * transaction.event_time.timestamp())
    cents = round(100 * transaction.amount)
    events, n = windows.events, len(windows.events)
    counts, means = [], []
    for k, window_ms in enumerate(WINDOWS_MS):
        start, bound = windows.starts[k], time_ms - window_ms
        while start < n and events[start][0] <= bound:
            windows.sums[k] -= events[start][1]
            start += 1
        windows.starts[k] = start
        counts.append(n - start)
        means.append(windows.sums[k] / (100 * (n - start)) if n > start else 0.0)
        windows.sums[k] += cents
    events.append((time_ms, cents))
    gone = windows.starts[-1]
    if gone:
        del events[:gone]
        windows.starts = [start - gone for start in windows.starts]
    return windows, (transaction, time_ms, cents, (*counts, *means))


def flow_of(options: Arguments) -> Dataflow:
    """The dataflow."""
    booster, river = load_lightgbm(options.workdir), load_river(options.workdir)
    decoder, encoder = msgspec.json.Decoder(Transaction), msgspec.json.Encoder()

    def decoded(messages: list[KafkaSourceMessage[Any, bytes]]) -> list[tuple[str, Transaction]]:
        batch = [decoder.decode(message.value) for message in messages]
        return [(transaction.card_id, transaction) for transaction in batch]

    def decided(batch: list[tuple[str, Profiled]]) -> list[KafkaSinkMessage[bytes, bytes]]:
        n = len(batch)
        values = [value for _, value in batch]
        rows = inputs_of_many(
            np.array([cents for _, _, cents, _ in values]),
            np.array([time_ms for _, time_ms, _, _ in values]),
            np.fromiter((float(item.mcc) for item, _, _, _ in values), float, n),
            np.fromiter((item.channel == "online" for item, _, _, _ in values), float, n),
            np.fromiter((item.country != HOME_COUNTRY for item, _, _, _ in values), float, n),
            np.array([profile for _, _, _, profile in values], float),
        )
        trees = booster.predict(rows)
        logistic = river.predict_proba_many(pd.DataFrame(rows, columns=INPUTS))[True]
        return [
            KafkaSinkMessage(
                card.encode(),
                encoder.encode(
                    {
                        "transaction_id": message.transaction_id,
                        "card_id": card,
                        "score": (tree + line) / 2,
                        "lightgbm": tree,
                        "river": line,
                        **dict(zip(PROFILE, profile, strict=True)),
                    }
                ),
            )
            for (card, (message, _, _, profile)), tree, line in zip(
                batch, trees.tolist(), logistic.tolist(), strict=True
            )
        ]

    brokers = [options.bootstrap_servers]
    flow = Dataflow("decide")
    read = kop.input("transactions", flow, brokers=brokers, topics=[options.input], batch_size=BATCH)
    op.raises("unreadable", read.errs)
    keyed = op.flat_map_batch("decode", read.oks, decoded)
    profiles = op.stateful_map("profile", keyed, profiled)
    decisions = op.flat_map_batch("decide", profiles, decided)
    kop.output(
        "decisions",
        decisions,
        brokers=brokers,
        topic=options.output,
        add_config={"partitioner": "murmur2", "enable.idempotence": "true"},
    )
    return flow


def main(options: Arguments) -> None:
    """Run the dataflow in one worker of one process until SIGTERM."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    init_db_dir(options.scratch, 1)
    cli_main(flow_of(options), epoch_interval=SNAPSHOT_INTERVAL, recovery_config=RecoveryConfig(options.scratch))


if __name__ == "__main__":
    main(arguments())
