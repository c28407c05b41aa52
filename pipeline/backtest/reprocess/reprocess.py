"""Decide history again into topics of its own, beside the live decisions.

A run writes its decisions and their features in the order in which it makes them, so many in a transaction. What is
committed is therefore the beginning of the run, and the same run that is started again goes on behind it: it decides
all of it once more, sees that the beginning is what lies there, and writes the rest. The last transaction says how many
decisions there are.
"""

import hashlib
from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec

from pipeline.backtest.api import Backtest
from pipeline.backtest.input.topic_source import TopicSource
from pipeline.backtest.labels.schedule import LabelMode
from pipeline.backtest.reprocess.writer import DecisionMessages, RunWriter
from pipeline.backtest.reprocess.written_runs import (
    Present,
    ReprocessError,
    RunTopics,
    features_topic,
    hashes_of_block,
    hashes_of_decision,
    look,
)
from pipeline.backtest.runner.replay import Candidate
from pipeline.backtest.runner.request import Request
from pipeline.backtest.runner.statistics import BacktestProgress
from pipeline.engine.cards.card_options import CardOptions
from pipeline.features.catalogue import KERNEL_VERSION
from pipeline.kafka.cluster.admin import delete_before, ensure_topics, reached
from pipeline.kafka.cluster.clients import admin_client
from pipeline.kafka.cluster.cluster import topic_identities
from pipeline.kafka.cluster.log_offsets import partition_numbers, stable_ends
from pipeline.kafka.readers.topic_reader import QUEUE_OF_BLOCKS, read_batches
from pipeline.kafka.writers.producer import TransactionalProducer
from pipeline.settings import Settings
from schemas.messages import CardConfig, FeedbackConfig
from schemas.topics import DECISION_FEATURES, DECISIONS, PROFILED, TRANSACTIONS, Topic

_RUN_DIGITS: Final = 16
_INTERNAL: Final = "__"
"""Prefix of the topics that brokers keep for themselves."""


class Reprocessed(NamedTuple):
    """The result of a run."""

    run: str
    """Name of the run, from everything that it depends on but the records themselves."""
    topic: str
    """The full name."""
    present: int
    """Decisions that were there before."""
    written: int
    """Decisions that were added."""
    complete: bool
    """True if the topic holds the whole run; else the same run, started again, goes on."""
    warnings: tuple[str, ...]


class _Asked(msgspec.Struct, frozen=True):
    """The inputs of a run's name."""

    cluster_id: str
    topic_ids: dict[str, str]
    from_us: int
    to_us: int
    warm_up_us: int
    lateness_us: int
    order: str
    models: dict[str, str] | None
    """Versions; None for those that live decisions name."""
    learning_every_us: int | None
    learning: FeedbackConfig | None
    """Config of the online model's training; None where it does not learn."""
    card: CardConfig
    """Config of the card agent, the rates among it."""
    label_sources: dict[str, tuple[str, ...]]
    """Sources that topics of labels speak for."""
    simulated: bool
    """True if a simulator may label."""
    decision_features: str
    """Choice of the decisions that bear their features."""
    partitions: int
    kernel: str
    gate: bool | msgspec.UnsetType = msgspec.UNSET
    """True where the gate sets the blend; left out elsewhere."""


def reprocess(
    backtest: Backtest,
    into: str,
    *,
    replace: bool = False,
    progress: Callable[[BacktestProgress], None] | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Reprocessed:
    """Decide the range of a backtest into topics of its own, which are made where they are missing.

    Args:
        backtest: The range, and what decides it.
        into: Topic of the decisions, without the prefix; their features go to `features_topic` of it.
        replace: Delete what other runs have written there, once the first of this run's decisions are written.
        progress: Called with how far it has come.
        stopped: Returns whether to stop.

    Raises:
        ReprocessError: The topics cannot be written as it was asked.
        DeliveryFailed: Records were not written.
        Exception: As `Backtest.run`.
    """
    source = backtest.source
    if not isinstance(source, TopicSource):
        raise ReprocessError("a topic takes decisions about topics alone: leave the file out, or name a directory")
    _refuse_hypothetical(backtest)
    refuse_own(into, backtest.settings)
    candidates = backtest.candidates()
    if len(candidates) > 1:
        raise ReprocessError("a topic holds one run: name one model and one threshold, and a topic for each run")
    run = _name(backtest, source, next(iter(candidates.values()), None))
    partitions = backtest.partitions
    name = backtest.settings.topic(into)
    topics = RunTopics(name, features_topic(name))
    warnings = _ensure(source, into, partitions)
    # First, so that nobody else writes once it is looked at what is there.
    producer = TransactionalProducer(source.bootstrap, source.settings, f"{name}-reprocess")
    present = _look(source, topics)
    present.refuse_foreign(topics)
    replaced: dict[str, dict[int, int]] = {}
    if replace and (present.decisions.runs or present.features.runs):
        replaced = {topic: stable_ends(source.bootstrap, source.settings, topic, range(partitions)) for topic in topics}
        present = Present()
    present.refuse_other(topics, run)
    before = present.decisions.size
    if present.total is not None:
        return Reprocessed(run, name, before, 0, True, warnings)

    def begun() -> None:
        for topic, ends in replaced.items():
            delete_before(source.bootstrap, topic, ends, settings=source.settings)

    writer = RunWriter(producer, topics, run, present, _messages(backtest, source, partitions), begun)
    passed = backtest.each(writer.take, progress, stopped)
    if not passed.partial:
        writer.finish()
    return Reprocessed(run, name, before, writer.written, not passed.partial, (*warnings, *passed.warnings))


def _refuse_hypothetical(request: Request) -> None:
    """Raise `ReprocessError` for what the name of a run does not tell, and no later run could find again."""
    is_own = request.training is not None or request.rules is not None
    if is_own or request.labels is not LabelMode.RECORDED or request.chooses_thresholds:
        raise ReprocessError(
            "a topic takes decisions by versions and a threshold that there are, with recorded labels: leave --train, "
            "--budget, --pace, --rules and --labels out, or name a directory"
        )


def refuse_own(into: str, settings: Settings) -> None:
    """Raise `ReprocessError` for a name that may be no topic of a run.

    That is one of the pipeline's topics, or would be one under another prefix, or is Kafka's own, or nothing.
    """
    if not into:
        raise ReprocessError("the topic has no name: name one that is for this alone")
    if settings.topic(into).startswith(_INTERNAL):
        raise ReprocessError(f"{settings.topic(into)} is the name of a topic of Kafka's own: name another")
    for topic in settings.topics:
        if settings.topic(into).endswith(topic.name):
            raise ReprocessError(
                f"{into} is the name of a topic of the pipeline, or of one with another prefix, and nobody else may "
                f"write there: name another, such as {topic.name}-candidate"
            )


def _name(request: Request, source: TopicSource, candidate: Candidate | None) -> str:
    client = admin_client(source.bootstrap, settings=source.settings)
    inputs = (TRANSACTIONS, *source.settings.topics_of_labels)
    full = {topic.name: source.settings.topic(topic.name) for topic in inputs}
    # Says first whether a cluster answers, and has the topics.
    options = request.card_options(request.partitions)
    ids = topic_identities(client, list(full.values()))
    topic_ids = {name: ids.topic_ids[full_name] for name, full_name in full.items()}
    return run_name(request, source.lateness_us, candidate, options, ids.cluster_id, topic_ids)


def run_name(
    request: Request,
    lateness_us: int,
    candidate: Candidate | None,
    options: CardOptions,
    cluster_id: str,
    topic_ids: dict[str, str],
) -> str:
    """Name a run; ``candidate`` is None where the versions decide that live decisions name."""
    learning = None if candidate is None else candidate.learning
    asked = _Asked(
        cluster_id=cluster_id,
        topic_ids=topic_ids,
        from_us=request.span.from_us,
        to_us=request.span.to_us,
        warm_up_us=request.warm_up_us,
        lateness_us=lateness_us,
        order=request.order.value,
        models=None if candidate is None else msgspec.structs.asdict(candidate.models.versions(options.rates.version)),
        learning_every_us=None if learning is None else learning.publish_every_us,
        learning=None if learning is None else learning.config,
        card=options.config,
        gate=learning.gate if learning is not None and learning.gate else msgspec.UNSET,
        label_sources=request.settings.label_topics,
        simulated=request.settings.label_sources.simulated,
        decision_features=request.settings.decision_features,
        partitions=options.partitions,
        kernel=KERNEL_VERSION,
    )
    return hashlib.sha256(msgspec.json.encode(asked, order="sorted")).hexdigest()[:_RUN_DIGITS]


def _ensure(source: TopicSource, into: str, partitions: int) -> tuple[str, ...]:
    """Make the topics, or check them, so that their partitions are those of ``decisions``; warn about what is there."""
    _refuse_prefix(source, into)
    topics = [
        Topic(name, like.key, like.value, "reprocess", "cards", max_message_bytes=like.max_message_bytes)
        for name, like in ((into, DECISIONS), (features_topic(into), DECISION_FEATURES))
    ]
    settings = source.settings.model_copy(update={"card_partitions": partitions, "create_topics": True})
    states = ensure_topics(source.bootstrap, settings, topics)
    return tuple(f"topic {state.name}: {warning}" for state in states for warning in state.warnings)


def _refuse_prefix(source: TopicSource, into: str) -> None:
    """Raise `ReprocessError` where the name of the topic of decisions is the prefix of a pipeline's topics.

    Its topic ``features`` has the name of the run's topic of features.
    """
    prefix = f"{source.settings.topic(into)}-"
    there = reached(admin_client(source.bootstrap, settings=source.settings), source.bootstrap).topics
    for topic in source.settings.topics:
        if topic is not DECISION_FEATURES and prefix + topic.name in there:
            raise ReprocessError(
                f"{prefix}{DECISION_FEATURES.name} is the name of a topic of the pipeline that has {prefix}"
                f"{topic.name}, and nobody else may write there: name another topic than {into}"
            )


def _messages(request: Request, source: TopicSource, partitions: int) -> DecisionMessages:
    client = admin_client(source.bootstrap, settings=source.settings)
    merchants = len(partition_numbers(client, source.settings.topic(PROFILED.name)))
    all_features = request.settings.decision_features == "all"
    rates = request.card_options(partitions).rates
    return DecisionMessages(source.numbering, merchants, rates, all_features=all_features)


def _look(source: TopicSource, topics: RunTopics) -> Present:
    """Return what the topics hold."""
    decisions = read_batches(source.bootstrap, topics.decisions, settings=source.settings)
    features = read_batches(source.bootstrap, topics.features, settings=source.settings, tuning=QUEUE_OF_BLOCKS)
    return Present(look(decisions, hashes_of_decision), look(features, hashes_of_block))
