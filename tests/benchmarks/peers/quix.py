"""Quix Streams as its documentation teaches it: a StreamingDataFrame and a stateful function, one message at a time.

State lies in RocksDB with a changelog topic; checkpoints every 5 seconds, as by default.
"""

from datetime import datetime
from typing import Any

import numpy as np
from quixstreams import Application, State

from tests.benchmarks.job.definition import (
    HOME_COUNTRY,
    INPUTS,
    PROFILE,
    inputs_of_one,
    load_lightgbm,
    load_river,
)
from tests.benchmarks.job.windows import profile_of_history
from tests.benchmarks.peers.arguments import Arguments, arguments


def profiled(transaction: dict[str, Any], state: State) -> dict[str, Any]:
    """Counts and means of the card's windows; then the transaction enters its history."""
    time_ms = round(1_000 * datetime.fromisoformat(transaction["event_time"]).timestamp())
    cents = round(100 * transaction["amount"])
    history, profile = profile_of_history(state.get("history", default=[]), time_ms, cents)
    state.set("history", history)
    return {**transaction, "time_ms": time_ms, "cents": cents, "profile": profile}


def row_of(value: dict[str, Any]) -> list[float]:
    """The models' inputs."""
    return inputs_of_one(
        value["cents"] / 100,
        value["cents"],
        value["time_ms"],
        float(value["mcc"]),
        float(value["channel"] == "online"),
        float(value["country"] != HOME_COUNTRY),
        value["profile"],
    )


def decision_of(value: dict[str, Any], tree: float, logistic: float) -> dict[str, Any]:
    """The answer."""
    return {
        "transaction_id": value["transaction_id"],
        "card_id": value["card_id"],
        "score": (tree + logistic) / 2,
        "lightgbm": tree,
        "river": logistic,
        **dict(zip(PROFILE, value["profile"], strict=True)),
    }


def application(options: Arguments, commit_every: int = 0) -> Application:
    """The application, with defaults where nothing speaks against them; ``commit_every`` in messages."""
    return Application(
        broker_address=options.bootstrap_servers,
        consumer_group=options.group,
        auto_offset_reset="earliest",
        commit_every=commit_every,
        state_dir=options.scratch,
        loglevel="WARNING",
    )


def main(options: Arguments) -> None:
    """Profile, score, produce."""
    booster, river = load_lightgbm(options.workdir), load_river(options.workdir)
    app = application(options)

    def decided(value: dict[str, Any]) -> dict[str, Any]:
        row = row_of(value)
        tree = float(booster.predict(np.array([row]), num_threads=1)[0])
        return decision_of(value, tree, river.predict_proba_one(dict(zip(INPUTS, row, strict=True)))[True])

    transactions = app.topic(options.input, value_deserializer="json")
    decisions = app.topic(options.output, value_serializer="json")
    sdf = app.dataframe(transactions)
    sdf = sdf.apply(profiled, stateful=True)
    sdf = sdf.apply(decided)
    sdf.to_topic(decisions)
    app.run()


if __name__ == "__main__":
    main(arguments())
