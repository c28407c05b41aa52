"""History decided again into a topic of its own, beside what was decided live.

A run writes its decisions in the order in which it makes them, so many in a transaction. What is committed is therefore
the beginning of the run, and the same run that is started again goes on behind it: it decides all of it once more, sees
that the beginning is what lies there, and writes the rest. The last transaction says how many decisions there are.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

import msgspec
import numpy as np
import xxhash

from pipeline.backtest.api import Backtest
from pipeline.backtest.findings import Step
from pipeline.backtest.messages import DecisionMessages
from pipeline.backtest.request import Request
from pipeline.backtest.run import Candidate
from pipeline.backtest.sources import TopicSource
from pipeline.engine.card import CardOptions
from pipeline.engine.decisions import SELECTIONS, Decisions
from pipeline.features.catalogue import KERNEL_VERSION
from pipeline.kafka.admin import delete_before, ensure_topics
from pipeline.kafka.clients import admin_client, partition_numbers, read_batches, settled_ends
from pipeline.kafka.cluster import topic_identities
from pipeline.kafka.producer import TransactionalProducer
from pipeline.settings import Settings
from schemas.messages import CardRules, Decision, FeedbackRules, RecordPosition
from schemas.records import Record
from schemas.topics import DECISIONS, LABELS, PROFILED, TOPICS, TRANSACTIONS, Topic

RUN: Final = "reprocess-run"
"""Header of every record: which run it is of."""
DECIDED: Final = "reprocess-decisions"
"""Header of the records of a run's last transaction: how many decisions the whole run has."""
_TRANSACTION_ROWS: Final = 5_000
"""Decisions of a transaction, about ten megabytes."""
_RUN_DIGITS: Final = 16
_INTERNAL: Final = "__"
"""How names of topics begin that brokers keep for themselves."""
_FINGERPRINT_BITS: Final = 64


class ReprocessError(ValueError):
    """The topic cannot be written as it was asked; the text says what to do."""


class Reprocessed(NamedTuple):
    """What came of it."""

    run: str
    """What the run is named by: everything that it depends on but the records themselves."""
    topic: str
    """The full name."""
    present: int
    """Decisions that were there before."""
    written: int
    """Decisions that were added."""
    complete: bool
    """Whether the topic holds the whole run; else the same run, started again, goes on."""
    warnings: tuple[str, ...]


class _Asked(msgspec.Struct, frozen=True):
    """What a run is named by."""

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
    learning: FeedbackRules | None
    """By what the online model is taught; None where it does not learn."""
    card: CardRules
    """By what records are judged, the rates among it."""
    partitions: int
    kernel: str


class _Verdict(msgspec.Struct):
    """What of a decision is compared, as far as it is one of the same run."""

    source: RecordPosition
    score: float
    selection: str | None = None


_decode = msgspec.json.Decoder(_Verdict).decode


class Present(NamedTuple):
    """What lies in the topic."""

    runs: frozenset[str | None]
    """None for records that no run has written."""
    decisions: int
    fingerprint: int
    total: int | None
    """Decisions of the whole run; None where it was not written to its end."""

    def refuse_other(self, name: str, run: str) -> None:
        """Raise `ReprocessError` where the topic ``name`` holds another run than ``run``, or not all it once held."""
        if others := ", ".join(sorted(str(one) for one in self.runs - {run})):
            raise ReprocessError(
                f"topic {name} holds {self.decisions:,} decisions of run {others}; this one is {run}, of other models, "
                "another range, other options or other settings: name another topic, or replace what is there with "
                "--replace"
            )
        if self.total is not None and self.decisions != self.total:
            raise ReprocessError(
                f"topic {name} holds {self.decisions:,} of the {self.total:,} decisions that run {run} has written: "
                "the others were deleted, or are behind the topic's retention. Begin anew with --replace, and a longer "
                "retention.ms"
            )


def reprocess(
    backtest: Backtest,
    into: str,
    *,
    replace: bool = False,
    progress: Callable[[Step], None] | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Reprocessed:
    """Decide the range of ``backtest`` into the topic ``into`` (without the prefix), which is made where it is missing.

    ``replace`` deletes what other runs have written there, once the first of this run's decisions are written. Raises
    `ReprocessError`, and what `Backtest.run` raises, and `pipeline.kafka.producer.DeliveryFailed`.
    """
    request = backtest.request
    source = request.source
    if not isinstance(source, TopicSource):
        raise ReprocessError("only topics are reprocessed: leave the file out, or use `fraud-pipeline backtest`")
    refuse_own(into, request.settings)
    candidates = backtest.candidates()
    if len(candidates) > 1:
        raise ReprocessError("a topic holds one run: name one model and one threshold, and a topic for each run")
    run = _name(request, source, next(iter(candidates.values()), None))
    partitions = request.partitions
    name = request.settings.topic(into)
    warnings = _ensure(source, into, partitions)
    # First, so that nobody else writes once it is looked at what is there.
    producer = TransactionalProducer(source.bootstrap, source.settings, f"{name}-reprocess")
    present = look(read_batches(source.bootstrap, name, settings=source.settings))
    if None in present.runs:
        raise ReprocessError(
            f"topic {name} holds records that no reprocess has written: name a topic that is for this alone"
        )
    replaced: dict[int, int] = {}
    if replace and present.decisions:
        replaced = settled_ends(source.bootstrap, source.settings, name, range(partitions))
        present = _NOTHING
    present.refuse_other(name, run)
    if present.total is not None:
        return Reprocessed(run, name, present.decisions, 0, True, warnings)

    def begun() -> None:
        if replaced:
            delete_before(source.bootstrap, name, replaced, settings=source.settings)

    writer = Writer(producer, name, run, present, _messages(request, source, partitions), begun)
    passed = backtest.each(writer.take, progress, stopped)
    if not passed.partial:
        writer.finish()
    return Reprocessed(run, name, present.decisions, writer.written, not passed.partial, (*warnings, *passed.warnings))


def refuse_own(into: str, settings: Settings) -> None:
    """Raise `ReprocessError` for a name that may be no topic of a run.

    That is one of the pipeline's topics, or would be one under another prefix, or is Kafka's own, or nothing.
    """
    if not into:
        raise ReprocessError("the topic has no name: name one that is for this alone")
    if settings.topic(into).startswith(_INTERNAL):
        raise ReprocessError(f"{settings.topic(into)} is the name of a topic of Kafka's own: name another")
    for topic in TOPICS:
        if settings.topic(into).endswith(topic.name):
            raise ReprocessError(
                f"{into} is the name of a topic of the pipeline, or of one with another prefix, and nobody else may "
                f"write there: name another, such as {topic.name}-candidate"
            )


def _name(request: Request, source: TopicSource, candidate: Candidate | None) -> str:
    client = admin_client(source.bootstrap, settings=source.settings)
    full = {topic.name: source.settings.topic(topic.name) for topic in (TRANSACTIONS, LABELS)}
    # Says first whether a cluster answers, and has the topics.
    options = request.card_options(request.partitions)
    ids = topic_identities(client, list(full.values()))
    topic_ids = {name: ids.topic_ids[of] for name, of in full.items()}
    return run_name(request, source.lateness_us, candidate, options, ids.cluster_id, topic_ids)


def run_name(
    request: Request,
    lateness_us: int,
    candidate: Candidate | None,
    options: CardOptions,
    cluster_id: str,
    topic_ids: dict[str, str],
) -> str:
    """What a run is named by; ``candidate`` is None where the versions decide that live decisions name."""
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
        learning=None if learning is None else learning.options.rules,
        card=options.rules,
        partitions=options.partitions,
        kernel=KERNEL_VERSION,
    )
    return hashlib.sha256(msgspec.json.encode(asked, order="sorted")).hexdigest()[:_RUN_DIGITS]


def _ensure(source: TopicSource, into: str, partitions: int) -> tuple[str, ...]:
    """Make the topic, or check it, so that its partitions are those of ``decisions``."""
    topic = Topic(into, DECISIONS.key, Decision, "reprocess", "cards", max_message_bytes=DECISIONS.max_message_bytes)
    settings = source.settings.model_copy(update={"card_partitions": partitions, "create_topics": True})
    (state,) = ensure_topics(source.bootstrap, settings, [topic])
    return tuple(f"topic {state.name}: {warning}" for warning in state.warnings)


def _messages(request: Request, source: TopicSource, partitions: int) -> DecisionMessages:
    client = admin_client(source.bootstrap, settings=source.settings)
    merchants = len(partition_numbers(client, source.settings.topic(PROFILED.name)))
    return DecisionMessages(source.numbering, merchants, request.card_options(partitions).rates)


_NOTHING: Final = Present(frozenset(), 0, 0, None)


def look(batches: Iterable[Sequence[Record]]) -> Present:
    """What the records of a topic are."""
    runs: set[str | None] = set()
    decisions = fingerprint = 0
    total = None
    for records in batches:
        for record in records:
            headers = dict(record.headers)
            run = headers.get(RUN)
            runs.add(None if run is None else run.decode())
            if run is None:
                return Present(frozenset(runs), 0, 0, None)
            decisions += 1
            if (said := headers.get(DECIDED)) is not None:
                total = int(said)
            fingerprint += _fingerprint(record)
    return Present(frozenset(runs), decisions, fingerprint % 2**_FINGERPRINT_BITS, total)


def _fingerprint(record: Record) -> int:
    of = _decode(record.value or b"")
    return _hash(of.source.partition, of.source.offset, of.score, of.selection)


def _hash(*of: object) -> int:
    """Of a decision; those of several are added up, since partitions have no common order."""
    return xxhash.xxh3_64_intdigest(msgspec.msgpack.encode(of))


class Writer:
    """Passes over what is there, and writes the rest."""

    def __init__(
        self,
        producer: TransactionalProducer,
        topic: str,
        run: str,
        present: Present,
        messages: DecisionMessages,
        begun: Callable[[], None],
    ) -> None:
        """``begun`` is called once the first transaction is there: what it replaces may go then, and not before.

        A range without a decision, or a run that another one has fenced, so takes nothing away.
        """
        self._producer, self._topic, self._run, self._messages = producer, topic, run, messages
        self._begun = begun
        self._present, self._passed, self._fingerprint = present, 0, 0
        self._waiting: list[tuple[bytes, bytes]] = []
        self.written = 0

    def take(self, name: str, decisions: Decisions) -> None:
        """Write decisions; the last of them wait for those behind, or for the end."""
        del name
        over = min(self._present.decisions - self._passed, len(decisions))
        if over:
            self._pass_over(decisions, over)
            decisions = decisions.take(np.arange(over, len(decisions)))
        keys = [card.encode() for card in decisions.transactions.card_id.to_pylist()]
        self._waiting += zip(keys, self._messages.values(decisions, datetime.now(UTC)), strict=True)
        while len(self._waiting) > _TRANSACTION_ROWS:
            self._write(self._waiting[:_TRANSACTION_ROWS], [])
            del self._waiting[:_TRANSACTION_ROWS]

    def finish(self) -> None:
        """Write what waits, and say that this is all."""
        # The beginning of a run is never all of it.
        if not self._waiting:
            raise self._other()
        total = self._present.decisions + self.written + len(self._waiting)
        self._write(self._waiting, [(DECIDED, str(total).encode())])

    def _write(self, records: list[tuple[bytes, bytes]], more: list[tuple[str, bytes | None]]) -> None:
        self._producer.write(self._topic, records, [(RUN, self._run.encode()), *more])
        if not self.written:
            self._begun()
        self.written += len(records)

    def _pass_over(self, decisions: Decisions, n: int) -> None:
        places = map(self._messages.numbering.place, decisions.transactions.row[:n].tolist())
        for place, score, code in zip(places, decisions.score.tolist(), decisions.selection.tolist(), strict=False):
            self._fingerprint += _hash(*place, score, SELECTIONS[code] if code >= 0 else None)
        self._passed += n
        same = self._fingerprint % 2**_FINGERPRINT_BITS == self._present.fingerprint
        if self._passed == self._present.decisions and not same:
            raise self._other()

    def _other(self) -> ReprocessError:
        return ReprocessError(
            f"the {self._present.decisions:,} decisions of this run in topic {self._topic} are not those that it makes "
            "now: transactions or labels have come, or gone, since it was interrupted, or decisions were deleted. "
            "Begin anew with --replace"
        )
