"""Job (b): job (a)'s transactions as the pipeline meets them live, and how what it made of them is checked.

The same transactions from the same simulation, of which 1 % come late, 1 % come twice and 1 % get a label. Event times
lie years back, so that the producer stamps the records, as in a replay. All lie in the topics before the workers start.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.kafka.cluster.admin import ensure_topics
from pipeline.settings import Settings
from schemas.messages import Label
from schemas.topics import DECISIONS, LABELS, TOPICS, TRANSACTIONS
from tests.benchmarks.forests import champion
from tests.benchmarks.job.check import WrongAnswers
from tests.benchmarks.job.definition import PARTITIONS
from tests.benchmarks.job.prepare import SEED, encoded, transactions, write
from tests.benchmarks.running import Bench, Prepared
from tests.evaluation import checks
from tests.evaluation.recorded import Identity, Topics
from tests.helpers.champion import publish_champion

LATE: Final = 0.01
LATEST_MS: Final = 6 * 3_600_000
DUPLICATE: Final = 0.01
REPEATED_WITHIN_MS: Final = 3_600_000
LABELLED: Final = 0.01
LABELLED_AFTER_MS: Final = 2 * 3_600_000
SAMPLED: Final = 40
"""Cards, and merchants, whose features are computed again."""


@dataclass(frozen=True)
class Arrivals:
    """What lies in the topics: (topic, key, value, milliseconds of arrival), in order of arrival within a topic."""

    transactions: list[tuple[str, bytes, bytes, int]]
    labels: list[tuple[str, bytes, bytes, int]]
    accepted: list[Identity]
    """Each transaction once."""


def arrivals(frame: pd.DataFrame, seed: int = SEED) -> Arrivals:
    """Let some transactions of ``frame`` come late, twice, or be labelled; purchases of nothing are left out."""
    # A few that the simulator makes; the wire contract refuses them.
    frame = frame[frame["cents"] > 0]
    generator = np.random.default_rng((seed, 2))
    n = len(frame)
    time_ms = frame["time_ms"].to_numpy()
    arrival_ms = time_ms + np.where(generator.random(n) < LATE, generator.integers(1, LATEST_MS, n), 0)
    repeated = np.flatnonzero(generator.random(n) < DUPLICATE)
    rows = np.concatenate([np.arange(n), repeated])
    again_ms = arrival_ms[repeated] + generator.integers(1, REPEATED_WITHIN_MS, len(repeated))
    at_ms = np.concatenate([arrival_ms, again_ms])
    order = np.argsort(at_ms, kind="stable")
    values, cards, names = encoded(frame), frame["card_id"].tolist(), frame["transaction_id"].tolist()
    fraud = frame["fraud"].tolist()
    sent = [
        (TRANSACTIONS.name, cards[row].encode(), values[row], moment)
        for row, moment in zip(rows[order].tolist(), at_ms[order].tolist(), strict=True)
    ]
    labels = []
    labelled = np.flatnonzero(generator.random(n) < LABELLED)
    for row in labelled[np.argsort(arrival_ms[labelled], kind="stable")].tolist():
        moment = int(arrival_ms[row]) + LABELLED_AFTER_MS
        label = Label(
            transaction_id=names[row],
            card_id=cards[row],
            label="fraud" if fraud[row] else "legitimate",
            source="analyst",
            labelled_at=datetime.fromtimestamp(moment / 1_000, UTC),
        )
        labels.append((LABELS.name, cards[row].encode(), msgspec.json.encode(label), moment))
    return Arrivals(sent, labels, list(zip(cards, names, strict=True)))


def pipeline_settings(bootstrap: str, run: str, data_dir: Path, partitions: int) -> Settings:
    """Of the workers of a run: the defaults, but for places, partitions and who stamps the records."""
    return Settings(
        kafka_bootstrap_servers=bootstrap,
        topic_prefix=f"{run}-",
        data_dir=data_dir,
        timestamps="producer",
        card_partitions=partitions,
        merchant_partitions=partitions,
        metrics_port=0,
    )


def prepare_pipeline(bench: Bench, run: str, records: int, partitions: int = PARTITIONS) -> Prepared:
    """Topics of the run with all that arrives, and the active models; `decisions` is left to the runner."""
    settings = pipeline_settings(bench.bootstrap, run, bench.directory / run, partitions)
    ensure_topics(bench.bootstrap, settings, [topic for topic in TOPICS if topic is not DECISIONS])
    made = arrivals(transactions(records))
    write(bench.bootstrap, _prefixed(made, settings))
    models = champion()
    publish_champion(bench.bootstrap, settings, models.lightgbm, models.policy)
    payloads = {models.lightgbm.version: models.lightgbm.to_payload()}

    def verified(output: str) -> npt.NDArray[np.int64]:
        assert output == settings.topic(DECISIONS.name)
        topics = Topics(bench.bootstrap, settings)
        check(topics, made, payloads)
        stamps = [record.timestamp_ms for records in topics.batches(DECISIONS) for record in records]
        return np.sort(np.array(stamps, np.int64))

    return Prepared(settings.topic(TRANSACTIONS.name), len(made.accepted), verified, partitions)


def check(topics: Topics, made: Arrivals, payloads: dict[str, bytes]) -> None:
    """Each transaction decided once, each label passed on, features of a sample, and all of LightGBM's scores.

    Raises ``WrongAnswers`` with what is wrong.
    """
    generator = np.random.default_rng(SEED)
    decisions = topics.decisions()
    cards = set(generator.permutation(sorted({card for card, _ in made.accepted}))[:SAMPLED].tolist())
    sent, card_log = topics.transactions(cards)
    merchants = set(generator.permutation(sorted(set(card_log["merchant_id"])))[:SAMPLED].tolist())
    labels, early, merchant_log = topics.profiled(merchants)
    outcomes = [
        checks.every_transaction_once(made.accepted, sorted(set(sent)), decisions.identity, topics.dead_letters()),
        checks.labels_were_passed_on(len(made.labels), labels, early),
        # A repeat is not profiled.
        checks.features_equal_the_reference(
            decisions, card_log.drop_duplicates(["card_id", "transaction"]), merchant_log
        ),
        checks.lightgbm_scores_are_reproduced(decisions, payloads.__getitem__),
    ]
    problems = [f"{outcome.name}: {'; '.join(outcome.problems)}" for outcome in outcomes if not outcome.passed]
    if problems:
        raise WrongAnswers(" | ".join(problems))


def _prefixed(made: Arrivals, settings: Settings) -> Iterator[tuple[str, bytes, bytes, int]]:
    for records in (made.labels, made.transactions):
        for topic, key, value, moment in records:
            yield settings.topic(topic), key, value, moment
