"""``python -m tests.evaluation.handbook FILE``: the acceptance run on a file with the Handbook's columns.

Trains on what was known before a day, replays transactions and their late labels through broker and agents, and holds
everything that came out to the file, to a slow reference and to the models' own libraries. ``docs/evaluation.md`` says
what each figure means. Exit code 1 when a check fails.
"""

import contextlib
import json
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
import pandas as pd

from pipeline.broker.process import BrokerError
from pipeline.broker.provided import provide_broker
from pipeline.commands.option_types import Duration, Moment
from pipeline.commands.replay import Speed
from pipeline.demo.processes import WorkerDied
from pipeline.history.canonical_columns import UnusableSource
from pipeline.history.files import resolve_mapping
from pipeline.kafka.cluster.errors import TopicError
from pipeline.kafka.writers.producer import DeliveryFailed
from pipeline.learning.regimes import LabelRegime
from pipeline.models.registry import LIGHTGBM, Registry, RegistryError
from pipeline.replay.replayer import ReplayOptions
from pipeline.scoring.errors import ModelError
from pipeline.scoring.kinds import Scorer
from pipeline.scoring.payload import payload_digest
from pipeline.scoring.river_factory import first_river, load_river, new_learner
from pipeline.settings import Settings
from pipeline.training.fit import TrainingConfig
from schemas.messages import Example, ModelVersion
from schemas.times import EPOCH
from schemas.topics import EXAMPLES, MODELS
from tests.evaluation import checks
from tests.evaluation.champion import Recipe, champion
from tests.evaluation.measures import detection, latency_ms
from tests.evaluation.recorded import Decisions, Identity, Topics
from tests.evaluation.report import model_figures, say, say_figures, say_rates, throughput
from tests.evaluation.stream import Stalled, Streaming, StreamReport, prepared
from tests.helpers.champion import publish_champion
from tests.helpers.files import load_transactions
from tests.helpers.models import registered

FRAME_ROWS = 16_384
VALIDATION_DAYS = 7.0
LAST_WEEK = timedelta(days=7)
"""The Handbook's test week is the last one of the file."""
FAILURES = (
    BrokerError, DeliveryFailed, ModelError, RegistryError, Stalled, TopicError, UnusableSource, WorkerDied,
)  # fmt: skip


@click.command("evaluate")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--from", "start", type=Moment(), default="2018-06-17", show_default=True, help="First day to replay.")
@click.option("--to", "end", type=Moment(), default="2018-08-15", show_default=True, help="Day to end before.")
@click.option(
    "--known-before",
    type=Moment(),
    default="2018-07-25",
    show_default=True,
    help="Train on what was known then; measure detection from then on.",
)
@click.option("--label-delay", type=Duration(), default="7d", show_default=True, help="Event time until the label.")
@click.option("--labels/--no-labels", default=True, show_default=True, help="Whether labels stream at all.")
@click.option("--speed", type=Speed(), default="max", show_default=True, help="Simulated seconds a second, or max.")
@click.option("--workers", type=click.IntRange(min=1), default=2, show_default=True, help="Worker processes.")
@click.option("--partitions", type=click.IntRange(min=1), default=4, show_default=True, help="Of each keyed topic.")
@click.option("--max-in-flight", type=click.IntRange(min=1), default=8_000, show_default=True, help="Of the replay.")
@click.option(
    "--sample",
    type=(click.IntRange(min=1), click.IntRange(min=1)),
    default=(60, 120),
    show_default=True,
    help="Cards and merchants whose features are computed again.",
)
@click.option("--budget-per-day", type=click.FloatRange(min=0, min_open=True), default=100.0, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="To train.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the sample.")
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keeps broker and registry.  [default: a temporary one]",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("build/evaluation.json"),
    show_default=True,
    help="Where all figures go.",
)
def command(file: Path, data_dir: Path | None, output: Path, **options: Any) -> None:
    """Evaluate the whole pipeline on FILE (.parquet or .csv, the Handbook's columns)."""
    with contextlib.ExitStack() as stack:
        if data_dir is None:
            data_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fraud-pipeline-evaluation-")))
        try:
            figures, outcomes = evaluate(file, data_dir, **options)
        except FAILURES as error:
            raise click.ClickException(str(error)) from error
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    click.echo(f"\nAll figures are in {output}.")
    if not all(check.passed for check in outcomes):
        sys.exit(1)


def evaluate(
    file: Path,
    data_dir: Path,
    *,
    start: datetime,
    end: datetime,
    known_before: datetime,
    label_delay: float,
    labels: bool,
    speed: float,
    workers: int,
    partitions: int,
    max_in_flight: int,
    sample: tuple[int, int],
    budget_per_day: float,
    threads: int,
    seed: int,
) -> tuple[dict[str, Any], list[checks.Check]]:
    """Train, stream, check and measure; returns what goes into the JSON file, and the checks. Prints as it goes."""
    settings = Settings().model_copy(
        update={
            "data_dir": data_dir,
            "topic_prefix": f"evaluation-{datetime.now(UTC):%Y%m%d-%H%M%S}-",
            "card_partitions": partitions,
            "merchant_partitions": partitions,
            "timestamps": "producer",
            "create_topics": True,
            "metrics_port": 0,
            "registry_dir": None,
        }
    )
    mapping = resolve_mapping(file)
    frame = load_transactions(file, mapping, start=start, end=end)
    registry = Registry(settings.registry_path)
    recipe = Recipe(
        file, mapping, known_before, label_delay / 86_400.0, VALIDATION_DAYS, budget_per_day,
        TrainingConfig(threads=threads),
    )  # fmt: skip
    say(f"training on what was known before {known_before:%Y-%m-%d}")
    began_s = time.monotonic()
    model = champion(registry, recipe)
    training_s = time.monotonic() - began_s
    say(f"LightGBM {model.lightgbm} trained in {training_s:.0f} s")

    say("starting the broker")
    with provide_broker(settings) as broker, prepared(broker, settings, workers, data_dir / "logs") as processes:
        servers = broker.bootstrap_servers
        publish_champion(servers, settings, registered(registry, model.lightgbm), registry.load_policy(model.policy))
        options = ReplayOptions(
            speed=speed,
            regime=LabelRegime(delay_days=label_delay / 86_400.0),
            flush_labels=False,
            max_in_flight=max_in_flight,
        )
        say(f"replaying {len(frame):,} transactions through {workers} workers{'' if labels else ', without labels'}")
        streaming = Streaming(broker, settings, processes, options)
        streaming.await_joined()
        sent = frame if labels else frame.drop(columns=["fraud", "fraud_type"])
        report = streaming.run(sent.iloc[at : at + FRAME_ROWS] for at in range(0, len(sent), FRAME_ROWS))
        say_rates(report)
        if labels:
            streaming.await_learned()
        say("reading what was recorded, and checking it")
        topics = Topics(servers, settings)
        decisions = topics.decisions()
        outcomes = _check(topics, decisions, frame, report, registry, np.random.default_rng(seed), sample)
    figures = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cores": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()},
        "load_1m_at_the_end": round(os.getloadavg()[0], 2),
        "settings": {
            "from": start.isoformat(),
            "to": end.isoformat(),
            "known_before": known_before.isoformat(),
            "label_delay_s": label_delay,
            "labels": labels,
            "speed": "max" if math.isinf(speed) else speed,
            "workers": workers,
            "partitions": partitions,
            "max_in_flight": max_in_flight,
            "sample": sample,
            "seed": seed,
            "delivery": settings.delivery,
            "batch_max_records": settings.batch_max_records,
        },
        "model": model_figures(model, training_s),
        "throughput": throughput(report),
        "ingested_to_decided_ms": latency_ms(decisions),
        "detection": _detection(decisions, frame, known_before, end) if labels else None,
        "checks": [asdict(check) for check in outcomes],
    }
    say_figures(figures, outcomes)
    return figures, outcomes


def _check(
    topics: Topics,
    decisions: Decisions,
    frame: pd.DataFrame,
    report: StreamReport,
    registry: Registry,
    generator: np.random.Generator,
    sample: tuple[int, int],
) -> list[checks.Check]:
    cards, merchants = (
        set(generator.permutation(np.unique(frame[name].to_numpy(str)))[:count].tolist())
        for name, count in zip(("card_id", "merchant_id"), sample, strict=True)
    )
    file = list(zip(frame["card_id"], frame["transaction_id"], strict=True))
    sent, card_log = topics.transactions(cards)
    profiled_labels, early_labels, merchant_log = topics.profiled(merchants)
    river = dict(_river_versions(topics))
    outcomes = [
        checks.every_transaction_once(file, sent, decisions.identity, topics.dead_letters()),
        checks.labels_were_passed_on(report.labels, profiled_labels, early_labels),
        checks.features_equal_the_reference(decisions, card_log, merchant_log),
        checks.lightgbm_scores_are_reproduced(decisions, lambda version: registry.load(LIGHTGBM, version)),
        checks.blended_scores_are_reproduced(decisions, river, lambda version: registry.load_policy(version).blend),
    ]
    if report.labels:
        outcomes.append(_river_fold(topics, river))
    return outcomes


def _river_versions(topics: Topics) -> Iterator[tuple[str, Scorer]]:
    """Every online model that can be got by name: those of the topic, and the one before the first example."""
    first = first_river()
    yield first.version, first
    decode = msgspec.json.Decoder(ModelVersion).decode
    for records in topics.batches(MODELS):
        for record in records:
            message = decode(record.value or b"")
            payload = bytes(message.payload)
            if message.name == "river" and payload_digest(payload) == message.digest:
                model = load_river(payload, None, _no_file)
                yield model.version, model


def _no_file(name: str, digest: str) -> bytes:
    raise RegistryError(f"the default online model keeps no file ({name}, {digest})")


def _river_fold(topics: Topics, river: dict[str, Scorer]) -> checks.Check:
    """Fold the recorded examples anew, up to the offset of the newest version."""
    newest = max(river, key=lambda version: int(version.rpartition("@")[2]))
    model, offset = river[newest], int(newest.rpartition("@")[2])
    decode = msgspec.json.Decoder(Example).decode
    learner, count = new_learner(), 0
    for records in topics.batches(EXAMPLES):
        examples = [decode(record.value or b"") for record in records if record.offset < offset]
        learner.learn_examples(examples)
        count += len(examples)
    return checks.river_is_a_replay(model.to_payload(), learner.snapshot(offset).to_payload(), newest, count)


def _detection(
    decisions: Decisions, frame: pd.DataFrame, known_before: datetime, end: datetime
) -> dict[str, dict[str, Any]]:
    frauds: set[Identity] = set(
        zip(frame.loc[frame["fraud"], "card_id"], frame.loc[frame["fraud"], "transaction_id"], strict=True)
    )
    periods = {
        f"{first:%Y-%m-%d} to {end - timedelta(days=1):%Y-%m-%d}": first for first in (known_before, end - LAST_WEEK)
    }
    unit = timedelta(microseconds=1)
    return {
        name: detection(decisions, frauds, (first - EPOCH) // unit, (end - EPOCH) // unit)
        for name, first in periods.items()
    }


if __name__ == "__main__":
    command()
