"""Faust as its guide teaches it: models, an agent over a topic, a table that its changelog backs, one event at a time.

Faust's own windows hop and tumble, which the job's exact windows do not; so a table holds each card's transactions.
"""

from datetime import datetime

import faust
import numpy as np

from tests.benchmarks.job.definition import (
    HOME_COUNTRY,
    INPUTS,
    PARTITIONS,
    inputs_of_one,
    load_lightgbm,
    load_river,
)
from tests.benchmarks.job.windows import profile_of_history
from tests.benchmarks.peers.arguments import arguments

options = arguments()
booster, river = load_lightgbm(options.workdir), load_river(options.workdir)

app = faust.App(
    options.group,
    broker=f"kafka://{options.bootstrap_servers}",
    datadir=str(options.scratch),
    topic_partitions=PARTITIONS,
    topic_replication_factor=1,
    consumer_auto_offset_reset="earliest",
    web_enabled=False,
)


class Transaction(faust.Record, coerce=True, date_parser=datetime.fromisoformat):
    """What the job needs of a transaction.

    Faust's own parser takes the fraction of a second for microseconds, whatever the number of its digits.
    """

    transaction_id: str
    event_time: datetime
    card_id: str
    amount: float
    channel: str
    country: str
    mcc: str


class Decision(faust.Record):
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


transactions = app.topic(options.input, key_type=str, key_serializer="raw", value_type=Transaction)
decisions = app.topic(options.output, key_type=str, key_serializer="raw", value_type=Decision)
history = app.Table("history", default=list, partitions=PARTITIONS)


@app.agent(transactions)
async def decide(stream: faust.Stream[Transaction]) -> None:
    """One decision for each transaction."""
    async for transaction in stream:
        time_ms = round(1_000 * transaction.event_time.timestamp())
        cents = round(100 * transaction.amount)
        history[transaction.card_id], profile = profile_of_history(history[transaction.card_id], time_ms, cents)
        row = inputs_of_one(
            cents / 100,
            cents,
            time_ms,
            float(transaction.mcc),
            float(transaction.channel == "online"),
            float(transaction.country != HOME_COUNTRY),
            profile,
        )
        tree = float(booster.predict(np.array([row]), num_threads=1)[0])
        logistic = river.predict_proba_one(dict(zip(INPUTS, row, strict=True)))[True]
        await decisions.send(
            key=transaction.card_id,
            value=Decision(
                transaction.transaction_id,
                transaction.card_id,
                (tree + logistic) / 2,
                tree,
                logistic,
                *profile,
            ),
        )


if __name__ == "__main__":
    faust.Worker(app, loglevel="WARN").execute_from_commandline()
