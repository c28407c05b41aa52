"""Replay in process: from a file of transactions to encoded decisions on one core, without Kafka.

Part ``in_process`` of ``make bench``. The kernels are the agents' own, called batch by batch as the agents call
them; the two hops hand records over in memory. Feedback and River's learning are timed apart, on the same decisions.
"""

import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from agents.app import GC_THRESHOLDS
from agents.partitions import by_partition
from pipeline.decision.policy import Policy
from pipeline.engine.cards import card_batch, driver
from pipeline.engine.cards.card_join import CardJoin
from pipeline.engine.cards.card_partition import CardPartition
from pipeline.engine.cards.transaction_index import StoreIndex
from pipeline.engine.feedback.feedback import FeedbackPartition
from pipeline.engine.feedback.learn import LearnPartition
from pipeline.engine.partition_state.state import PartitionState
from pipeline.engine.records import accepted_labels
from pipeline.engine.records.accepted_labels import LabelOptions
from pipeline.engine.records.partitioner import partition_of
from pipeline.engine.records.results import Result, merged
from pipeline.engine.scores import decider as decider_module
from pipeline.engine.scores import decision_messages
from pipeline.engine.scores.active_models import ActiveModels
from pipeline.engine.scores.decider import Decider
from pipeline.engine.scores.deduplication import ReadInputs
from pipeline.engine.scores.score import ScorePartition
from pipeline.features.kernel import CardWindows, MerchantWindows
from pipeline.scoring.lightgbm_model import LightGBMModel
from pipeline.scoring.river_factory import new_learner
from pipeline.scoring.river_layer import RiverLayer
from pipeline.settings import Settings
from pipeline.state.mapped import MappedStorage
from pipeline.state.segments import FileSegments
from pipeline.state.store import RocksStore, StoreMemory
from schemas.records import Headers, Output, Record
from schemas.topics import ACCEPTED_LABELS, DECISION_FEATURES, DECISIONS, EXAMPLES, LABELS, PROFILED, TRANSACTIONS
from tests.benchmarks.alone import (
    DAYS_AGO,
    SMALL,
    Size,
    clocks,
    default_options,
    one_core,
    scratch,
    since,
    stages_row,
)
from tests.benchmarks.stages import Stages
from tests.benchmarks.traffic import Traffic, a_while_ago, items

LINE_KINDS = {b"t": TRANSACTIONS.name, b"l": LABELS.name}

STAGES: dict[str, list[tuple[Any, str]]] = {
    "label: decode and check": [(accepted_labels, "accept")],
    "card: decode and check": [(card_batch, "accept_transactions"), (card_batch, "read_accepted")],
    "card: keys": [(driver, "digest_keys"), (card_batch, "name_keys"), (card_batch, "partitions_of")],
    "card: index read": [(StoreIndex, "fetch")],
    "card: join": [(CardJoin, "join"), (CardJoin, "forget")],
    "card: index write": [(StoreIndex, "update"), (RocksStore, "commit")],
    "card: windows": [(CardWindows, "profile"), (CardWindows, "commit")],
    "card: encode profiled": [(card_batch, "encode_profiled")],
    "card: rest": [(card_batch, "process_together")],
    "score: read profiled": [(decider_module, "read_rows")],
    "score: repeats": [(ReadInputs, "duplicates")],
    "score: windows": [(MerchantWindows, "profile"), (MerchantWindows, "commit")],
    "score: trees": [(LightGBMModel, "logit")],
    "score: River": [(RiverLayer, "logit")],
    "score: policy": [(Policy, "decide")],
    "score: reasons of alerts": [(decision_messages, "explain")],
    "score: TreeSHAP of alerts": [(LightGBMModel, "contributions")],
    "score: build and encode decisions": [(Decider, "_publish")],
    "score: encode features": [(decider_module, "encode_features")],
    "score: rest": [(ScorePartition, "profile"), (Decider, "process")],
}
"""Functions that are called once a batch, or once for each partition of it, by the stage that they are counted for."""


class Engine:
    """The kernels of all partitions of a small cluster, in one thread."""

    def __init__(self, models: ActiveModels, partitions: int, directory: Path) -> None:
        """State in files and RocksDB below ``directory``, as a worker keeps it."""
        self._models, self._partitions = models, partitions
        memory = StoreMemory(Settings().store_memory_mb * 1024 * 1024)

        def store(name: str) -> RocksStore:
            return RocksStore(directory / name, memory=memory)

        def storage(name: str) -> MappedStorage:
            return MappedStorage(directory / name)

        card, feedback = default_options(partitions)
        card = card._replace(merchant_partitions=partitions)
        self._labels = LabelOptions(card.future_tolerance_us, partitions)
        self._card_options = card
        numbers = range(partitions)
        self._cards = [CardPartition(card, storage(f"card-{n}"), store(f"index-{n}")) for n in numbers]
        self._scores = [ScorePartition(storage(f"score-{n}")) for n in numbers]
        self._decider = Decider("EUR", partitions)
        self._feedbacks = [
            FeedbackPartition(feedback, store(f"served-{n}"), segments=FileSegments(directory / f"segments-{n}"))
            for n in numbers
        ]
        self._learner = LearnPartition(new_learner())
        self._offsets: dict[tuple[str, int], int] = {}
        self._places: dict[bytes, int] = {}

    def close(self) -> None:
        """Let go of the state."""
        kernels: list[PartitionState] = [*self._cards, *self._scores, *self._feedbacks]
        for kernel in kernels:
            kernel.close()

    def replay(self, records: Sequence[Record]) -> None:
        """Let history enter the windows; nothing is decided."""
        now = datetime.now(UTC)
        for number, part in by_partition(self.profiled(self.accepted(records, now), now)).items():
            self._scores[number].replay(part)
            self._scores[number].commit()

    def accepted(self, records: Sequence[Record], now: datetime) -> list[Record]:
        """The label hop: transactions as they are, and what becomes of labels."""
        labels = [record for record in records if record.topic == LABELS.name]
        if not labels:
            return list(records)
        outputs = accepted_labels.accept(labels, self._labels).outputs
        return [*(record for record in records if record.topic != LABELS.name), *self._log(outputs, now)]

    def profiled(self, records: Sequence[Record], now: datetime) -> list[Record]:
        """The card hop: its outputs, as the score hop reads them."""
        parts = by_partition(records)
        states = [(self._cards[number].kernels, part) for number, part in parts.items()]
        outputs = card_batch.process_together(states, now, self._card_options).outputs
        for number in parts:
            self._cards[number].commit()
        return self._log(outputs, now)

    def decided(self, records: Sequence[Record], now: datetime) -> Result:
        """The score hop."""
        parts = by_partition(records)
        result = self._decider.process(
            [(self._scores[number], part) for number, part in parts.items()], self._models, now
        )
        for number in parts:
            self._scores[number].commit()
        return result

    def joined(self, records: Sequence[Record], now: datetime) -> list[Record]:
        """Feedback: examples of labels and features of decisions."""
        parts = by_partition(records)
        outputs = merged(self._feedbacks[number].process(part, now) for number, part in parts.items()).outputs
        for number in parts:
            self._feedbacks[number].commit()
        return self._log(outputs, now)

    def learned(self, examples: Sequence[Record]) -> None:
        """River's updates."""
        self._learner.learn(examples)
        self._learner.commit()

    def place(self, key: bytes) -> int:
        """The partition of a key; remembered, because a broker would have it for nothing."""
        number = self._places.get(key)
        if number is None:
            number = self._places[key] = partition_of(key.decode(), self._partitions)
        return number

    def append(
        self, topic: str, key: bytes, value: bytes, timestamp_ms: int, headers: Headers = (), number: int | None = None
    ) -> Record:
        """A record at the end of its partition's log."""
        number = self.place(key) if number is None else number
        offset = self._offsets.get((topic, number), 0)
        self._offsets[topic, number] = offset + 1
        return Record(topic, number, offset, timestamp_ms, key, value, headers)

    def _log(self, outputs: Iterable[Output], now: datetime) -> list[Record]:
        """Records of the topics that a further kernel reads."""
        stamp_ms = round(now.timestamp() * 1_000)
        return [
            self.append(
                output.topic.name, output.key or b"", output.value or b"", stamp_ms, output.headers, output.partition
            )
            for output in outputs
            if output.topic in (ACCEPTED_LABELS, PROFILED, DECISION_FEATURES, EXAMPLES)
        ]


def write_file(path: Path, traffic: Traffic, rows: int, labelled: float) -> None:
    """History and ``rows`` measured transactions, one a line: kind, key, JSON, parted by tabs; history in its own."""
    starts = a_while_ago(DAYS_AGO)
    for name, frame in (("history", traffic.history(starts)), ("measured", traffic.measured(starts, rows))):
        with (path / f"{name}.lines").open("wb") as sink:
            for item in items(frame, traffic.seed, labelled=labelled):
                sink.write(b"%s\t%s\t%s\n" % (item.topic[:1].encode(), item.key, item.value))


def read_file(path: Path, engine: Engine, batch_rows: int) -> Iterator[list[Record]]:
    """The lines as records of their partitions, in batches."""
    stamp_ms = round(time.time() * 1_000)
    with path.open("rb") as lines:
        while chunk := list(itertools.islice(lines, batch_rows)):
            yield [
                engine.append(LINE_KINDS[kind], key, value, stamp_ms)
                for kind, key, value in (line.rstrip(b"\n").split(b"\t", 2) for line in chunk)
            ]


def replay(engine: Engine, path: Path, batch_rows: int, sink: BinaryIO) -> dict[str, Any]:
    """Both hops over a file, timed; then feedback and learning on what came out, each timed by itself."""
    stages = Stages()
    labels: list[list[Record]] = []
    features: list[list[Output]] = []
    decisions = alerts = decision_bytes = 0
    with stages.around(STAGES), stages.stage("file, handover"):
        started = clocks()
        for records in read_file(path, engine, batch_rows):
            now = datetime.now(UTC)
            accepted = engine.accepted(records, now)
            result = engine.decided(engine.profiled(accepted, now), now)
            for output in result.outputs:
                sink.write(output.value or b"")
            alerts += result.counts["decision", "alert"]
            labels.append([record for record in accepted if record.topic == ACCEPTED_LABELS.name])
            values = [output.value or b"" for output in result.outputs if output.topic is DECISIONS]
            decisions += len(values)
            decision_bytes += sum(map(len, values))
            features.append([output for output in result.outputs if output.topic is DECISION_FEATURES])
        hops = since(started)
    feature_bytes = sum(len(output.value or b"") for outputs in features for output in outputs)
    now = datetime.now(UTC)
    batches = [[*engine._log(made, now), *label] for made, label in zip(features, labels, strict=True)]
    started = clocks()
    examples = [engine.joined(batch, now) for batch in batches]
    feedback = since(started)
    started = clocks()
    for batch in examples:
        engine.learned(batch)
    learning = since(started)
    return {
        "transactions": decisions,
        "labels": sum(map(len, labels)),
        "alerts": alerts,
        "bytes_a_decision": round(decision_bytes / max(1, decisions)),
        "feature_bytes_a_decision": round(feature_bytes / max(1, decisions)),
        **hops.row(decisions),
        "feedback_us_a_transaction": feedback.us(decisions),
        "learning_us_a_transaction": learning.us(decisions),
        "examples": sum(map(len, examples)),
        "stages_us": stages_row(stages.seconds, decisions),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(Size):
    """A run."""

    batch_rows: int = 2_000


QUICK = Options(rows=20_000, traffic=SMALL)


def measure(options: Options, _tell: Callable[[str], None]) -> dict[str, Any]:
    """The part of ``build/bench.json``: the replay as a worker keeps its state, with the split by stage.

    Writes the file, fills the windows, and replays. Pins this process to one core meanwhile.
    """
    models = options.models()
    with scratch("in-process-") as directory:
        write_file(directory, options.traffic, options.rows, options.labelled)
        # The collector as a worker has it.
        with (
            closing(Engine(models, options.partitions, directory / "state")) as engine,
            one_core(options.core, GC_THRESHOLDS),
        ):
            for records in read_file(directory / "history.lines", engine, options.batch_rows):
                engine.replay(records)
            with open(os.devnull, "wb", buffering=1 << 20) as sink:
                found = replay(engine, directory / "measured.lines", options.batch_rows, sink)
    return {**found, **options.forest(), "batch": options.batch_rows}
