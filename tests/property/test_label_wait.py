"""Labels while partitions drift apart: each has one outcome, the card agent's, and learning follows it.

Cards are of one partition. Its transactions come from three partitions of ``transactions``, two of them rerouted, and
go to three partitions of ``profiled``. Each of these lags by up to 16 days of event time, now more and now less.
"""

from collections import Counter, defaultdict
from datetime import timedelta
from typing import Any, NamedTuple

import numpy as np
import pytest

from pipeline.engine.cards.card_partition import CardPartition
from pipeline.engine.feedback.feedback import FeedbackPartition
from pipeline.engine.partition_state.state import MemoryStore
from pipeline.engine.records.accepted_labels import accept
from pipeline.engine.records.forwarding import forward
from pipeline.engine.scores.decider import Decider
from pipeline.engine.scores.score import ScorePartition
from schemas.messages import FeedbackConfig
from schemas.records import Record
from schemas.times import US_PER_DAY
from schemas.topics import DEAD_LETTERS, DECISION_FEATURES, EXAMPLES, PROFILED, REROUTED
from tests.helpers.champion import active
from tests.helpers.logs import LABEL_OPTIONS, after, decode_example, label, microseconds, reason, to, transaction
from tests.unit.engine.test_engine_card import followed, options

NOW = after(900)
SOURCES, MERCHANTS = 3, ("m1", "m2", "m3", "m4", "m5", "m6")
DAYS = 90
LAGS = (0.0, 3.0, 9.0, 16.0)
HORIZON_US = 200 * US_PER_DAY
FEEDBACK = FeedbackConfig(label_horizon_us=HORIZON_US, maturity_us=190 * US_PER_DAY, negative_sample_rate=1e-9)
GRACE, LATE, SPAN = timedelta(days=7), timedelta(hours=1), timedelta(days=35)


class Sold(NamedTuple):
    """A transaction, and the report that it is fraud."""

    number: int
    source: int
    merchant: str
    day: float
    """Event time."""
    sent: float
    reported: float | None
    """Day on which its label is known; None for none."""


def sales(random: np.random.Generator) -> list[Sold]:
    """Some three transactions a day, in the order in which they are sent; few are late within their partition."""
    found = []
    for number in range(3 * DAYS):
        sent = number / 3
        day = max(sent - float(random.choice([0, 0, 0, 0, 0.2, 9, 25], p=[0.3, 0.2, 0.2, 0.1, 0.1, 0.05, 0.05])), 0)
        delay = float(random.choice([-8, -3, 0.1, 2, 6, 11]))
        reported = max(day + delay, 0) if random.random() < 0.7 else None
        # All begin together: of a partition that has never come, nobody but its own cards' partition knows.
        source = number if number < SOURCES else int(random.integers(SOURCES))
        found.append(Sold(number, source, str(random.choice(MERCHANTS)), day, sent, reported))
    # Long after, so that nothing waits any more.
    last = [(source, merchant) for source in range(SOURCES) for merchant in MERCHANTS]
    return found + [
        Sold(len(found) + number, source, merchant, day, day, None)
        for number, (source, merchant) in enumerate(last)
        for day in [3.0 * DAYS + number / 100]
    ]


class Lags:
    """When a partition works on what was sent on a day: later in some weeks, and always in its order."""

    def __init__(self, random: np.random.Generator) -> None:
        self._weeks = [0.0, *random.choice(LAGS, 1 + 3 * DAYS // 7)]
        self._last = 0.0

    def worked(self, day: float) -> float:
        self._last = max(self._last, day + float(self._weeks[int((day + 6) // 7)]))
        return self._last


class Pipeline:
    """One partition of cards behind three of ``transactions``, and before three of ``profiled``."""

    def __init__(self, random: np.random.Generator) -> None:
        self.random = random
        self.card = CardPartition(options(label_days=200)._replace(merchant_partitions=3), None, MemoryStore())
        self.scores = [ScorePartition() for _ in range(3)]
        self.decider = Decider("EUR", 1)
        self.feedback = FeedbackPartition(FEEDBACK, MemoryStore())
        self.models = active()
        self.offsets: Counter[Any] = Counter()
        self.joined: set[str] = set()
        self.refused: Counter[int] = Counter()
        """Offsets of labels."""
        self.examples: Counter[str] = Counter()
        self.order: list[Sold] = []
        """As the card agent met them."""

    def offset(self, *of: Any) -> int:
        self.offsets[of] += 1
        return self.offsets[of] - 1

    def sold(self, sold: Sold) -> Record:
        value, at = transaction(sold.number, after(sold.day), merchant_id=sold.merchant), microseconds(after(sold.day))
        record = Record("transactions", sold.source, self.offset(sold.source), at // 1_000, b"c1", value)
        if sold.source == 0:
            return record
        passed = forward(record, REROUTED, "c1", 0)
        return Record("rerouted", 0, self.offset("rerouted"), 0, passed.key, passed.value, passed.headers)

    def label(self, sold: Sold) -> Record:
        at = after(sold.reported or 0)
        record = Record("labels", 0, sold.number, microseconds(at) // 1_000, b"c1", label(sold.number, at))
        (output,) = accept([record], LABEL_OPTIONS).outputs
        return Record("accepted-labels", 0, self.offset("labels"), 0, output.key, output.value, output.headers)

    def work_on_cards(self, records: list[Record]) -> list[Record]:
        """Return the blocks."""
        result = self.card.process(records, NOW)
        self.card.commit()
        self.joined |= {transaction_id for transaction_id, _, _ in followed(result)}
        self.refused.update(int(reason(letter, "offset")) for letter in to(DEAD_LETTERS, result))
        found = []
        for output in to(PROFILED, result):
            partition = output.partition or 0
            found.append(Record("profiled", partition, self.offset(PROFILED, partition), 0, None, output.value))
        return found

    def decide(self, block: Record) -> list[Record]:
        result = self.decider.process([(self.scores[block.partition], [block])], self.models, NOW)
        self.scores[block.partition].commit()
        features = to(DECISION_FEATURES, result)
        return [Record("features", 0, self.offset("features"), 0, None, output.value) for output in features]

    def learn(self, records: list[Record]) -> None:
        result = self.feedback.process(records, NOW)
        self.feedback.commit()
        self.examples.update(decode_example(output.value or b"").transaction_id for output in to(EXAMPLES, result))

    def run(self, sold: list[Sold]) -> None:
        """Work on everything, each partition at its own pace."""
        random = self.random
        sources, merchants = ([Lags(random) for _ in range(3)] for _ in range(2))
        of_cards, of_feedback = Lags(random), Lags(random)
        arrivals = [(sources[item.source].worked(item.sent), 0, item) for item in sold]
        reported = sorted((item for item in sold if item.reported is not None), key=lambda item: item.reported or 0)
        arrivals += [(of_cards.worked(item.reported or 0), 1, item) for item in reported]
        arrivals.sort(key=lambda arrival: arrival[:2])
        labels = {item.number: self.label(item) for item in reported}
        later: list[tuple[float, int, list[Record]]] = []
        while arrivals:
            count = int(random.choice([1, 1, 2, 8]))
            # What comes long after comes by itself.
            batch = [arrival for arrival in arrivals[:count] if (arrival[0] < 2 * DAYS) == (arrivals[0][0] < 2 * DAYS)]
            arrivals = arrivals[len(batch) :]
            # What was passed on comes behind what lay there.
            items = sorted((item for _, kind, item in batch if not kind), key=lambda item: item.source > 0)
            self.order += items
            records = [self.sold(item) for item in items]
            records += [labels[item.number] for _, kind, item in batch if kind]
            for block in self.work_on_cards(records):
                worked = merchants[block.partition].worked(min(batch[-1][0], 3 * DAYS))
                later.append((worked, 0, self.decide(block)))
        later += [(of_feedback.worked(item.reported or 0), 1, [labels[item.number]]) for item in reported]
        later.sort(key=lambda arrival: arrival[:2])
        while later:
            count = int(random.choice([1, 1, 2, 7]))
            self.learn([record for _, _, records in later[:count] for record in records])
            later = later[count:]


def expected(order: list[Sold]) -> set[str]:
    """Frauds that are known, by the wire contract: the least of the partitions decides, whatever is read first."""
    newest: dict[int, Any] = {}
    reached, found = after(-9_999), set()
    for sold in order:
        at = after(sold.day)
        newest.setdefault(0, at)
        newest[sold.source] = max(at, newest.get(sold.source, at))
        held = [time for time in newest.values() if time > max(newest.values()) - SPAN]
        reached = max(reached, min(held))
        if sold.reported is not None and after(sold.reported) >= max(at + LATE, reached) - GRACE:
            found.add(f"t{sold.number}")
    return found


@pytest.mark.parametrize("seed", range(4))
def test_every_known_fraud_is_learned_once_and_nothing_that_was_refused(seed: int) -> None:
    random = np.random.default_rng(seed)
    sold, pipeline = sales(random), Pipeline(random)
    pipeline.run(sold)
    known = expected(pipeline.order)
    assert pipeline.joined == known
    assert pipeline.examples == Counter(dict.fromkeys(known, 1))
    labelled = {item.number for item in sold if item.reported is not None}
    assert pipeline.refused == Counter(dict.fromkeys((n for n in labelled if f"t{n}" not in known), 1))
    assert pipeline.card.dump().values
    # Whoever is no straggler of its own partition finds its label, however far the others are ahead.
    ahead: dict[int, float] = defaultdict(float)
    for item in sold:
        ahead[item.source] = max(ahead[item.source], item.day)
        if item.reported is not None and item.reported >= item.day and ahead[item.source] - item.day < 1:
            assert f"t{item.number}" in known
    assert len(labelled) - len(known) > 20
