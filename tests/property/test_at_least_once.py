"""At-least-once delivery: batches that are read again and cut otherwise lose nothing and count nothing twice.

Card, score and feedback agents run on logs in memory. A batch may fail: of its outputs a random prefix of each
partition is written, its state is rolled back, and it is read again in other batches and other blocks. What is left of
its outputs may be written late, as by a worker that was paused and has lost its partitions. Each attempt of the score
agent may have other models.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest

from pipeline.engine.cards.card_batch import process_together
from pipeline.engine.cards.card_partition import CardPartition
from pipeline.engine.encoding import block_writing
from pipeline.engine.feedback.feedback import FeedbackPartition
from pipeline.engine.partition_state.decision_segments import MemorySegments
from pipeline.engine.partition_state.state import MemoryStore
from pipeline.engine.records.partitioner import partition_of
from pipeline.engine.scores import deduplication
from pipeline.engine.scores.block_messages import read_messages
from pipeline.engine.scores.decider import Decider
from pipeline.engine.scores.decision_records import read_feature_messages, unpack_record
from pipeline.engine.scores.deduplication import ReadInput, ReadInputs
from pipeline.engine.scores.score import ScorePartition
from schemas.messages import DecisionFeatures, Example, FeedbackConfig, ProfiledTransaction
from schemas.records import Output, Record
from schemas.times import US_PER_DAY
from schemas.topics import DECISION_FEATURES, EXAMPLES, PROFILED, TRANSACTIONS
from tests.helpers.champion import active, decide
from tests.helpers.logs import (
    LabelLog,
    Log,
    after,
    block_of,
    decode_example,
    label,
    microseconds,
    to,
    transaction,
)
from tests.reference.identities import transaction_digest
from tests.unit.engine.test_engine_card import options

MERCHANT_PARTITIONS = 3
NOW = after(900)
MATURITY_DAYS = 5
MODELS = [active(threshold=threshold) for threshold in (0.3, 0.6, 0.9)]
FEEDBACK = FeedbackConfig(
    label_horizon_us=200 * US_PER_DAY, maturity_us=MATURITY_DAYS * US_PER_DAY, negative_sample_rate=1.0
)
PRESUMED = "presumed_legitimate"
TAKEN_OVER = ("merchant_id", "event_time", "amount_base", "score", "logit", "river_logit", "versions", "log")
Key = tuple[str, str]


class Faults(NamedTuple):
    """How often batches fail, and how often what is left of one is written late."""

    failed: float = 0.5
    late: float = 0.3


FAULTS = Faults()
NO_FAULTS = Faults(0.0, 0.0)


class Inputs:
    """Transactions, some of them sent twice, and labels, as their producers write them within some weeks."""

    def __init__(self, random: np.random.Generator, card_partitions: int, *, labelled: bool, size: int = 110) -> None:
        self.transactions = [Log(TRANSACTIONS, number) for number in range(card_partitions)]
        self.labels = [LabelLog(number) for number in range(card_partitions)]
        self.days: dict[Key, float] = {}
        self.known: dict[Key, str] = {}
        moments: list[tuple[float, str, bytes, bool]] = []
        for number, day in enumerate(np.sort(random.uniform(0, 25, size)).tolist()):
            card, merchant = f"c{random.integers(6)}", f"m{random.integers(8)}"
            key = (card, f"t{number}")
            value = transaction(
                number, after(day), card_id=card, merchant_id=merchant, amount=int(random.integers(1, 2_000))
            )
            moments += [(day, card, value, False)] * (2 if random.random() < 0.1 else 1)
            self.days[key] = day
            if labelled and random.random() < 0.4:
                said_at = day + random.uniform(0, 1)
                self.known[key] = "fraud"
                moments.append((said_at, card, _label(number, card, said_at, "fraud", "customer"), True))
                if random.random() < 0.3:
                    self.known[key] = "legitimate"
                    corrected_at = said_at + 0.5
                    value = _label(number, card, corrected_at, "legitimate", "audit")
                    moments.append((corrected_at, card, value, True))
        for day, card, value, is_label in sorted(moments, key=lambda moment: moment[0]):
            log = (self.labels if is_label else self.transactions)[partition_of(card, card_partitions)]
            log.append(value, after(day))


def _label(number: int, card: str, day: float, known: str, source: str) -> bytes:
    return label(number, after(day), known, card_id=card, source=source)


class Reader:
    """Consumer of logs whose records arrive day by day; reads on from what is committed."""

    def __init__(self, logs: Sequence[Log], random: np.random.Generator) -> None:
        self._logs, self._random = logs, random
        self.committed = [0] * len(logs)

    def read(self, until_ms: int) -> list[list[Record]]:
        """Return a random number of records of each log."""
        batch = []
        for log, first in zip(self._logs, self.committed, strict=True):
            rest = [record for record in log.records[first:] if record.timestamp_ms <= until_ms]
            batch.append(rest[: int(self._random.integers(0, 9))])
        return batch

    def commit(self, batch: Sequence[Sequence[Record]]) -> None:
        self.committed = [first + len(records) for first, records in zip(self.committed, batch, strict=True)]

    def is_behind(self, until_ms: int) -> bool:
        return any(
            record.timestamp_ms <= until_ms
            for log, first in zip(self._logs, self.committed, strict=True)
            for record in log.records[first : first + 1]
        )


class Writer:
    """Producer: writes all outputs of a batch, or of each partition a prefix and the rest late or never."""

    def __init__(self, logs: Sequence[Log], random: np.random.Generator, faults: Faults) -> None:
        self._logs, self._random, self._faults = logs, random, faults
        self._late: list[Output] = []

    def write(self, outputs: Sequence[Output], day: float) -> bool:
        """Return whether all were written, so that the batch may be committed."""
        failed = self._random.random() < self._faults.failed
        late, self._late = self._late, []
        before = self._random.random() < 0.5
        if before:
            self._append(late, day)
        by_partition: dict[int, list[Output]] = defaultdict(list)
        for output in outputs:
            by_partition[self._partition(output)].append(output)
        is_late = failed and self._random.random() < self._faults.late
        for of_one in by_partition.values():
            most = int(self._random.integers(0, len(of_one) + 1)) if failed else len(of_one)
            self._append(of_one[:most], day)
            self._late += of_one[most:] if is_late else []
        if not before:
            self._append(late, day)
        return not failed

    def _append(self, outputs: Iterable[Output], day: float) -> None:
        for output in outputs:
            self._logs[self._partition(output)].append(output.value, after(day), output.key, output.headers)

    def _partition(self, output: Output) -> int:
        if output.partition is not None:
            return output.partition
        return partition_of((output.key or b"").decode(), len(self._logs))


class Pipeline:
    """The three agents and their topics."""

    def __init__(self, inputs: Inputs, random: np.random.Generator, faults: Faults) -> None:
        self.inputs, self._random = inputs, random
        cards = range(len(inputs.transactions))
        self.profiled = [Log(PROFILED, number) for number in range(MERCHANT_PARTITIONS)]
        self.decisions = [Log(DECISION_FEATURES, number) for number in cards]
        self.examples = [Log(EXAMPLES)]
        self._card_options = options(partitions=len(cards))._replace(merchant_partitions=MERCHANT_PARTITIONS)
        self._cards = [CardPartition(self._card_options, None, MemoryStore()) for _ in cards]
        self.scores = [ScorePartition() for _ in self.profiled]
        self.segments = [MemorySegments() for _ in cards]
        self._feedbacks = [FeedbackPartition(FEEDBACK, MemoryStore(), segments=of) for of in self.segments]
        self._decider = Decider("EUR", len(cards))
        self._card_reader = Reader([*inputs.transactions, *inputs.labels], random)
        self._score_reader = Reader(self.profiled, random)
        self._feedback_reader = Reader([*self.decisions, *inputs.labels], random)
        self._writers = [Writer(logs, random, faults) for logs in (self.profiled, self.decisions, self.examples)]
        self._batches = 0
        self.committed: list[Example] = []
        self.counts: Counter[tuple[str, str]] = Counter()
        self.wrong: list[str] = []

    def run(self) -> None:
        """Process all inputs: each agent those of some days, then the next agent."""
        for day in range(2, 32, 2):
            until_ms = microseconds(after(day)) // 1_000
            for reader, step in (
                (self._card_reader, self._card),
                (self._score_reader, self._score),
                (self._feedback_reader, self._feedback),
            ):
                while reader.is_behind(until_ms):
                    step(reader.read(until_ms), day)

    def _card(self, batch: list[list[Record]], day: int) -> None:
        self._batches += 1
        parts = [
            (state.kernels, [*batch[number], *batch[len(self._cards) + number]])
            for number, state in enumerate(self._cards)
        ]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(block_writing, "MOST_ROWS", int(self._random.integers(1, 5)))
            result = process_together(parts, after(800, minutes=self._batches), self._card_options)
        outputs = to(PROFILED, result)
        self._end(self._card_reader, batch, self._cards, self._writers[0].write(outputs, day))

    def _score(self, batch: list[list[Record]], day: int) -> None:
        models = MODELS[int(self._random.integers(len(MODELS)))]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(block_writing, "MOST_ROWS", int(self._random.integers(1, 5)))
            result = self._decider.process(zip(self.scores, batch, strict=True), models, NOW)
        is_whole = self._writers[1].write(to(DECISION_FEATURES, result), day)
        self._end(self._score_reader, batch, self.scores, is_whole)
        if is_whole:
            self.counts += result.counts

    def _feedback(self, batch: list[list[Record]], day: int) -> None:
        outputs = []
        for number, state in enumerate(self._feedbacks):
            decided = batch[number]
            result = state.process([*decided, *batch[len(self._feedbacks) + number]], NOW)
            outputs += result.outputs
            last = self.last_decisions(number, self._feedback_reader.committed[number] + len(decided))
            for example in (decode_example(output.value or b"") for output in result.outputs):
                served = last[key_of(example)]
                if any(getattr(example, name) != getattr(served, name) for name in TAKEN_OVER):
                    self.wrong.append(f"{key_of(example)} has an example of another decision than the last one")
        is_whole = self._writers[2].write(outputs, day)
        self._end(self._feedback_reader, batch, self._feedbacks, is_whole)
        if is_whole:
            self.committed += [decode_example(output.value or b"") for output in outputs]

    def last_decisions(self, partition: int, until: int | None = None) -> dict[Key, DecisionFeatures]:
        """Return the last decision of each transaction, of those before an offset."""
        found = _rows(self.decisions[partition].records[:until])
        return {key_of(decision): decision for decision in found}

    @staticmethod
    def _end(reader: Reader, batch: list[list[Record]], states: Sequence[Any], is_whole: bool) -> None:
        for state in states:
            state.commit() if is_whole else state.rollback()
        if is_whole:
            reader.commit(batch)


def key_of(one: Any) -> Key:
    return one.card_id, one.transaction_id


def differences(pipeline: Pipeline) -> list[str]:
    """Return what is lost, counted twice or another than documented."""
    found = [*pipeline.wrong, *_wrong_decisions(pipeline), *_wrong_states(pipeline)]
    for partition, segments in enumerate(pipeline.segments):
        found += _wrong_records(pipeline, partition, segments)
    return [*found, *_wrong_examples(pipeline)]


def _wrong_decisions(pipeline: Pipeline) -> list[str]:
    """Compare the decisions with those of a log in the same order that has each transaction once."""
    wanted: dict[Key, DecisionFeatures] = {}
    for log in pipeline.profiled:
        once, places = Log(PROFILED, log.partition), []
        for offset, row, message in _first_rows(log):
            once.append(block_of(message))
            places.append((offset, row))
        result = decide(ScorePartition(), once.records, MODELS[0], NOW)
        assert not result.counts["duplicate", ""]
        for decision in _rows(to(DECISION_FEATURES, result)):
            offset, row = places[decision.log.offset]
            position = type(decision.log)(partition=log.partition, offset=offset, row=row)
            wanted[key_of(decision)] = _with_log(decision, position)
    found = [f"{key} is not in profiled" for key in pipeline.inputs.days.keys() - wanted.keys()]
    decided = set()
    for log in pipeline.decisions:
        for decision in _rows(log.records):
            key = key_of(decision)
            decided.add(key)
            if decision.log != wanted[key].log:
                found.append(f"{key} was decided from a row that was written again")
            if decision.features != wanted[key].features:
                found.append(f"{key} has other features than in a run without faults")
    return found + [f"{key} was not decided" for key in pipeline.inputs.days.keys() - decided]


def _first_rows(log: Log) -> Iterable[tuple[int, int, Any]]:
    """Return the rows of a partition without the transactions that an earlier row was made of."""
    seen = set()
    for record in log.records:
        for row, message in enumerate(read_messages(record.value)):
            if isinstance(message, ProfiledTransaction):
                source = (message.source.topic, message.source.partition, message.source.offset)
                if source in seen:
                    continue
                seen.add(source)
            yield record.offset, row, message


def _rows(blocks: Iterable[Record] | Iterable[Output]) -> list[DecisionFeatures]:
    return [row for block in blocks for row in read_feature_messages(block.value)]


def _with_log(decision: DecisionFeatures, position: Any) -> DecisionFeatures:
    return msgspec.structs.replace(decision, log=position)


def _wrong_states(pipeline: Pipeline) -> list[str]:
    """Compare the states with those of a replay of the log."""
    found = []
    for log, live in zip(pipeline.profiled, pipeline.scores, strict=True):
        replayed = ScorePartition()
        replayed.replay(log.records)
        replayed.commit()
        if replayed.digest() != live.digest():
            found.append(f"a replay of profiled {log.partition} leaves another state")
    return found


def _wrong_records(pipeline: Pipeline, partition: int, segments: MemorySegments) -> list[str]:
    """Compare what feedback keeps with the last decision of each transaction."""
    found = []
    for key, decision in pipeline.last_decisions(partition).items():
        digest = transaction_digest(*key)
        entry = segments.find([digest]).get(digest)
        if entry is None:
            found.append(f"feedback keeps no decision of {key}")
            continue
        (packed,) = segments.read([entry])
        record = unpack_record(packed)
        if any(getattr(record, name) != getattr(decision, name) for name in TAKEN_OVER):
            found.append(f"feedback keeps another decision of {key} than the last one")
    return found


def _wrong_examples(pipeline: Pipeline) -> list[str]:
    """Every label and every transaction that matured has its example; a second decision adds none."""
    examples: dict[Key, list[Example]] = defaultdict(list)
    for example in pipeline.committed:
        examples[key_of(example)].append(example)
    found = []
    newest = max(pipeline.inputs.days.values())
    for key, day in pipeline.inputs.days.items():
        of_one = examples.get(key, [])
        known = pipeline.inputs.known.get(key, PRESUMED if day < newest - MATURITY_DAYS - 3 else None)
        if known is not None and (not of_one or of_one[-1].label != known):
            found.append(f"{key} is {known}, and its examples are {[one.label for one in of_one]}")
        if [one.revision for one in of_one] != list(range(len(of_one))):
            found.append(f"{key} has the revisions {[one.revision for one in of_one]}")
    written = {record.value for log in pipeline.examples for record in log.records}
    lost = [example for example in pipeline.committed if _ENCODE(example) not in written]
    return found + [f"an example of {key_of(example)} was not written" for example in lost]


def ran(seed: int, *, card_partitions: int = 2, labelled: bool = True, faults: Faults = FAULTS) -> Pipeline:
    inputs = Inputs(np.random.default_rng(seed), card_partitions, labelled=labelled)
    pipeline = Pipeline(inputs, np.random.default_rng(seed), faults)
    pipeline.run()
    return pipeline


def written_again(pipeline: Pipeline) -> tuple[int, int]:
    """Return how many transactions stand in ``profiled``, and decisions in ``decisions``, beyond the first of each."""
    rows = sum(
        isinstance(message, ProfiledTransaction)
        for log in pipeline.profiled
        for record in log.records
        for message in read_messages(record.value)
    )
    decisions = sum(len(_rows(log.records)) for log in pipeline.decisions)
    return rows - len(pipeline.inputs.days), decisions - len(pipeline.inputs.days)


@pytest.mark.parametrize("seed", range(10))
def test_batches_that_are_read_again_lose_nothing_and_count_nothing_twice(seed: int) -> None:
    pipeline = ran(seed)
    assert min(written_again(pipeline)) > 0
    assert differences(pipeline) == []


@pytest.mark.parametrize("seed", range(3))
def test_features_are_those_of_a_run_without_faults(seed: int) -> None:
    """With one partition of cards, and without labels, every run has the merchants' transactions in one order."""

    def features(faults: Faults) -> dict[Key, Any]:
        pipeline = ran(seed, card_partitions=1, labelled=False, faults=faults)
        assert differences(pipeline) == []
        assert (min(written_again(pipeline)) > 0) == (faults != NO_FAULTS)
        return {key: one.features for key, one in pipeline.last_decisions(0).items()}

    assert features(FAULTS) == features(NO_FAULTS)


def only_from_the_start(before: ReadInput, batch_us: int, offset: int, identity: int) -> tuple[bool, ReadInput]:
    """Begin a batch; only one that begins where the latest batch began reads rows again."""
    is_repeat = offset <= before.last and (offset, identity) == (before.first, before.identity)
    last = before.last if is_repeat else offset
    return is_repeat, ReadInput(before.topic, before.partition, last, batch_us, offset, identity, offset)


def late_is_latest(before: ReadInput, batch_us: int, offset: int) -> ReadInput:
    """Go on with the batch of a row, were it one that was written late."""
    return msgspec.structs.replace(before, batch_us=batch_us, last=max(before.last, offset), reached=offset)


def by_block(state: ReadInputs, rows: Any, of: range) -> list[int]:
    """Take all rows of a block for repeats where one is."""
    found = set(rows.record[DUPLICATES(state, rows, of)].tolist())
    return [row for row in of if rows.record[row] in found and not rows.kinds[row]]


def first_holds(segments: MemorySegments, digests: Any, event_time_us: Any, decisions: Any) -> int:
    """Add decisions, an earlier one of a transaction in place of a later one."""
    before = dict(segments._rows)
    first = ADD(segments, digests, event_time_us, decisions)
    segments._rows.update({digest: row for digest, row in before.items() if digest in digests})
    return first


_ENCODE = msgspec.json.Encoder().encode
DUPLICATES, ADD = ReadInputs.duplicates, MemorySegments.add
BROKEN: dict[str, tuple[Any, str, Callable[..., Any], str]] = {
    "no row is a repeat": (ReadInputs, "duplicates", lambda *_: [], "written again"),
    "a second reading has one batch": (deduplication, "_begin", only_from_the_start, "written again"),
    "a late write begins a batch": (deduplication, "_further", late_is_latest, ""),
    "blocks are repeats as a whole": (ReadInputs, "duplicates", by_block, "was not decided"),
    "feedback keeps the first decision": (MemorySegments, "add", first_holds, "than the last one"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_rule_that_is_broken_shows(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where, name, broken, wrong = BROKEN[what]
    monkeypatch.setattr(where, name, broken)
    # The first run that shows it ends the search.
    assert any(wrong in text for seed in range(8) for text in differences(ran(seed)))
