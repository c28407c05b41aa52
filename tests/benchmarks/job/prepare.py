"""The input and the models of job (a): simulated, seeded, and written as files that any process can read."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import lightgbm
import numpy as np
import pandas as pd
from confluent_kafka import Producer
from river import linear_model, optim, preprocessing

from pipeline.simulation.simulator import make_profiles, simulate_days
from tests.benchmarks.job.definition import (
    DECISION_FIELDS,
    HOME_COUNTRY,
    INPUTS,
    JOB_FILE,
    MODEL_FILE,
    PARTITIONS,
    RIVER_FILE,
    WINDOWS_MS,
)
from tests.benchmarks.job.reference import inputs, profiles

SEED: Final = 20_260_301
DAYS: Final = 44
"""Spanned by every input, whatever its size: windows of 30 days fill and then expire for two weeks."""
RECORDS_PER_CARD: Final = 70
MERCHANTS_PER_CARD: Final = 2
TRAINING_RECORDS: Final = 60_000
RIVER_EXAMPLES: Final = 20_000
TREES: Final = 200
LEAVES: Final = 63
MCCS: Final = (5411, 5812, 5541, 5912, 4111, 5999, 5732, 7995)


def transactions(records: int, seed: int = SEED) -> pd.DataFrame:
    """``records`` transactions in order of event time.

    Fewer records come from fewer cards, not from fewer days, so that each card's windows hold the same at every size.
    Columns: ``transaction_id``, ``card_id``, ``merchant_id``, ``time_ms``, ``cents``, ``mcc``, ``channel``,
    ``country``, ``device_id``, ``fraud``.
    """
    cards = max(records // RECORDS_PER_CARD, 20)
    people = make_profiles(np.random.default_rng(seed), cards=cards, merchants=MERCHANTS_PER_CARD * cards)
    frame = simulate_days(people, seed, 0, DAYS)
    if len(frame) < records:
        raise ValueError(f"{cards} cards made {len(frame)} transactions in {DAYS} days, fewer than {records}")
    generator = np.random.default_rng((seed, 1))
    n = len(frame)
    merchant = frame["merchant_id"].str[1:].astype(int).to_numpy()
    made = pd.DataFrame(
        {
            "transaction_id": frame["transaction_id"],
            "card_id": frame["card_id"],
            "merchant_id": frame["merchant_id"],
            "time_ms": frame["event_time"].astype("int64") // 1_000 + generator.integers(0, 1_000, n),
            "cents": frame["amount_minor"],
            "mcc": np.array(MCCS)[merchant % len(MCCS)],
            "channel": np.where(generator.random(n) < 0.3, "online", "pos"),
            "country": np.where(generator.random(n) < 0.05, "IT", HOME_COUNTRY),
            "device_id": [f"d-{number:08x}" for number in generator.integers(0, 2**32, n)],
            "fraud": frame["fraud"],
        }
    )
    # Thinned at random rather than cut: all days stay.
    kept = np.sort(generator.choice(n, records, replace=False))
    return made.iloc[kept].sort_values("time_ms", kind="stable", ignore_index=True)


def encoded(frame: pd.DataFrame) -> list[bytes]:
    """Each transaction as JSON, about 218 bytes."""
    times = pd.to_datetime(frame["time_ms"], unit="ms").dt.strftime("%Y-%m-%dT%H:%M:%S.%f").str[:23]
    columns = zip(
        frame["transaction_id"],
        times,
        frame["card_id"],
        frame["merchant_id"],
        frame["cents"].tolist(),
        frame["country"],
        frame["channel"],
        frame["mcc"].tolist(),
        frame["device_id"],
        strict=True,
    )
    return [
        (
            f'{{"transaction_id":"{name}","event_time":"{time}Z","card_id":"{card}","merchant_id":"{merchant}",'
            f'"amount":{cents // 100}.{cents % 100:02d},"currency":"EUR","country":"{country}","channel":"{channel}",'
            f'"mcc":"{mcc}","device_id":"{device}"}}'
        ).encode()
        for name, time, card, merchant, cents, country, channel, mcc, device in columns
    ]


def write_input(frame: pd.DataFrame, bootstrap: str, topic: str) -> None:
    """Write the transactions to ``topic``, record times being event times. ``RuntimeError`` when some were refused."""
    columns = zip(encoded(frame), frame["card_id"], frame["time_ms"].tolist(), strict=True)
    write(bootstrap, ((topic, card.encode(), value, time_ms) for value, card, time_ms in columns))


def write(bootstrap: str, records: Iterable[tuple[str, bytes, bytes, int]]) -> None:
    """Write (topic, key, value, milliseconds of the record's time). ``RuntimeError`` when some were refused."""
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "partitioner": "murmur2",
            "linger.ms": 50,
            "enable.idempotence": True,
            # A young broker is asked again for its transaction coordinator; what fails for good is raised below.
            "log_level": 2,
        }
    )
    refused: list[str] = []

    def delivered(error: Any, message: Any) -> None:
        if error is not None:
            refused.append(f"{message.topic()}: {error}")

    for topic, key, value, time_ms in records:
        while True:
            try:
                producer.produce(topic, value, key, timestamp=time_ms, on_delivery=delivered)
                break
            except BufferError:  # the queue is full: let deliveries make room
                producer.poll(0.1)
        producer.poll(0)
    left = producer.flush(60)
    if left or refused:
        raise RuntimeError(f"{left} records were not sent, {len(refused)} refused: {refused[:1]}")


def write_job(workdir: Path) -> None:
    """Train both models and write ``model.txt``, ``river.json`` and ``job.json`` into ``workdir``."""
    workdir.mkdir(parents=True, exist_ok=True)
    frame = transactions(TRAINING_RECORDS, SEED + 1)
    rows, fraud = inputs(frame, profiles(frame)).to_numpy(), frame["fraud"].to_numpy()
    (workdir / MODEL_FILE).write_text(_lightgbm_text(rows, fraud), encoding="utf-8")
    (workdir / RIVER_FILE).write_text(json.dumps(_river_numbers(rows, fraud), indent=1), encoding="utf-8")
    job = {
        "inputs": list(INPUTS),
        "decision": list(DECISION_FIELDS),
        "windows_ms": list(WINDOWS_MS),
        "partitions": PARTITIONS,
        "home_country": HOME_COUNTRY,
    }
    (workdir / JOB_FILE).write_text(json.dumps(job, indent=1), encoding="utf-8")


def _lightgbm_text(rows: np.ndarray, fraud: np.ndarray) -> str:
    settings = {
        "objective": "binary",
        "num_leaves": LEAVES,
        "learning_rate": 0.05,
        "min_data_in_leaf": 10,
        "min_sum_hessian_in_leaf": 0.0,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": 1,
        "seed": SEED,
        "verbosity": -1,
    }
    data = lightgbm.Dataset(rows, fraud.astype(float), feature_name=list(INPUTS))
    model = lightgbm.train(settings, data, num_boost_round=TREES)
    text: str = model.model_to_string()
    return text


def _river_numbers(rows: np.ndarray, fraud: np.ndarray) -> dict[str, Any]:
    """Weights on the inputs as they are: the scaler that River learns with is multiplied in."""
    scaler, model = preprocessing.StandardScaler(), linear_model.LogisticRegression(optimizer=optim.SGD(0.005))
    for row, label in zip(rows[:RIVER_EXAMPLES].tolist(), fraud[:RIVER_EXAMPLES].tolist(), strict=True):
        named = dict(zip(INPUTS, row, strict=True))
        scaler.learn_one(named)
        model.learn_one(scaler.transform_one(named), label)
    spread = {name: float(scaler.vars[name]) ** 0.5 or 1.0 for name in INPUTS}
    weights = {name: float(model.weights[name]) / spread[name] for name in INPUTS}
    shift = sum(weights[name] * float(scaler.means[name]) for name in INPUTS)
    return {"intercept": float(model.intercept) - shift, "weights": weights}
