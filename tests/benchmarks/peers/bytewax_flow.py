"""Bytewax: Kafka in batches, ``stateful_map`` by card, and ``flat_map_batch`` where work on a batch is cheaper.

Recovery is on: state is written to SQLite every 10 seconds, and a restart goes on from there, at-least-once.
"""

import signal
from datetime import timedelta
from typing import Any

import msgspec
import pandas as pd
from bytewax import operators as op
from bytewax.connectors.kafka import KafkaSinkMessage, KafkaSourceMessage
from bytewax.connectors.kafka import operators as kop
from bytewax.dataflow import Dataflow
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.run import cli_main

from tests.benchmarks.job.definition import INPUTS, load_lightgbm, load_river
from tests.benchmarks.job.windows import Card, Decision, Transaction, inputs_of_batch
from tests.benchmarks.peers.arguments import Arguments, arguments

BATCH = 1_000
"""The connector's default, which its documentation recommends for throughput."""
SNAPSHOT_INTERVAL = timedelta(seconds=10)


Profiled = tuple[Transaction, int, int, tuple[float, ...]]


def profiled(card: Card | None, transaction: Transaction) -> tuple[Card, Profiled]:
    """Counts and means of the card's windows; then the transaction enters."""
    card = card or Card()
    time_ms = round(1_000 * transaction.event_time.timestamp())
    cents = round(100 * transaction.amount)
    return card, (transaction, time_ms, cents, card.profile(time_ms, cents))


def flow_of(options: Arguments) -> Dataflow:
    """The dataflow."""
    booster, river = load_lightgbm(options.workdir), load_river(options.workdir)
    decoder, encoder = msgspec.json.Decoder(Transaction), msgspec.json.Encoder()

    def decoded(messages: list[KafkaSourceMessage[Any, bytes]]) -> list[tuple[str, Transaction]]:
        batch = [decoder.decode(message.value) for message in messages]
        return [(transaction.card_id, transaction) for transaction in batch]

    def decided(batch: list[tuple[str, Profiled]]) -> list[KafkaSinkMessage[bytes, bytes]]:
        transactions, times_ms, cents, profiles = zip(*(value for _, value in batch), strict=True)
        rows = inputs_of_batch(transactions, times_ms, cents, profiles)
        trees = booster.predict(rows)
        logistic = river.predict_proba_many(pd.DataFrame(rows, columns=INPUTS))[True]
        return [
            KafkaSinkMessage(
                card.encode(),
                encoder.encode(Decision(message.transaction_id, card, (tree + line) / 2, tree, line, *profile)),
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
