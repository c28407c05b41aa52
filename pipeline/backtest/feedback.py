"""What transactions turned out to be, as examples: the rules of `pipeline.engine.feedback`, record by record.

It joins labels to decisions as they were served, and presumes what has matured, when each record has been worked on
before the next is read. A transaction costs a microsecond here, an example ten: they are made of a sample.
"""

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import repeat
from operator import itemgetter
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.backtest.order import Chunk
from pipeline.engine.columns import Labels, Transactions, digest_keys, identities
from pipeline.engine.decisions import Decisions
from pipeline.engine.feedback import PATIENCE_US, PRESUME_AT_MOST, FeedbackOptions
from pipeline.engine.layout import day_of
from pipeline.features.catalogue import FEATURES
from pipeline.learning.labels import FRAUD, KNOWN, LEGITIMATE, NOTHING, OUTCOMES, UNSEEN, StateNumbers, resolve_numbers
from pipeline.learning.sampling import NEGATIVE_SAMPLE, sample_positions
from schemas.messages import Example, LogPosition, Versions

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NOTHING: Final = KNOWN.index(NOTHING)
_LEGITIMATE: Final = KNOWN.index(LEGITIMATE)


@dataclass(frozen=True, slots=True, eq=False)
class _Served:
    """As much of a chunk's decisions as examples are made of."""

    transactions: Transactions
    features: NDArray[np.float64]
    """Shape (n, columns kept)."""
    logit: NDArray[np.float64]
    score: NDArray[np.float64]
    versions: Versions


class _Decided(NamedTuple):
    event_time_us: int
    served: _Served
    row: int


@dataclass(slots=True)
class _Known:
    state: StateNumbers = UNSEEN
    told: int = 0


@dataclass(slots=True, eq=False)
class _Label:
    row: int
    source: str
    rank: int
    known: int
    labelled_at_us: int
    known_at_us: int
    sampled: bool
    waits: bool = True


@dataclass(slots=True)
class _Partition:
    """What is known of one partition's decisions."""

    newest_us: int = 0
    decided: dict[bytes, _Decided] = field(default_factory=dict)
    by_day: defaultdict[int, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    first_day: int = 0
    known: dict[bytes, _Known] = field(default_factory=dict)
    maturing: list[tuple[int, bytes]] = field(default_factory=list)
    """A heap."""
    waiting: dict[bytes, list[_Label]] = field(default_factory=dict)
    oldest: list[tuple[int, int, bytes, _Label]] = field(default_factory=list)
    """A heap of the labels that wait."""


class Feedback:
    """Examples of all partitions, in the order in which live kernels tell them of records that come one by one."""

    def __init__(self, options: FeedbackOptions, kept: Sequence[str] = FEATURES) -> None:
        """``kept`` names the features that an example has: what is not learned from need not be remembered."""
        self._options = options
        self._kept = tuple(kept)
        self._columns = [FEATURES.index(name) for name in kept]
        self._partitions = [_Partition() for _ in range(options.partitions)]
        self.counts: Counter[tuple[str, str]] = Counter()
        """What happened so far, as the feedback agent counts it."""

    def examples(self, chunk: Chunk, decisions: Decisions, label_partition: NDArray[np.int64]) -> list[Example]:
        """What ``decisions`` and the labels of their ``chunk`` tell; ``label_partition`` has shape (m,)."""
        told: list[tuple[int, Example]] = []
        served = _Served(
            decisions.transactions,
            np.ascontiguousarray(decisions.features[:, self._columns]),
            decisions.logit,
            decisions.score,
            decisions.models.versions(decisions.rates_version),
        )
        digests = _digests(decisions.transactions)
        sampled = self._sampled(decisions.transactions)
        label_digests, labels = _digests(chunk.labels), self._labels(chunk.labels)
        for number, part in enumerate(self._partitions):
            rows = np.flatnonzero(decisions.partition == number)
            of = np.flatnonzero(label_partition == number)
            records = heapq.merge(
                zip(decisions.position[rows].tolist(), rows.tolist(), repeat(None), strict=False),
                zip(chunk.label_position[of].tolist(), of.tolist(), (labels[j] for j in of.tolist()), strict=True),
                key=itemgetter(0),
            )
            times = decisions.transactions.event_time_us.tolist()
            for position, index, label in records:
                if label is None:
                    decided = _Decided(times[index], served, index)
                    found = self._file(part, digests[index], decided, sampled[index])
                else:
                    found = self._take(part, label_digests[index], label)
                told += [(position, example) for example in found]
                told += [(position, example) for example in self._presume(part)]
                self._forget(part)
        # Of several partitions; what one record told stays in its order.
        return [example for _, example in sorted(told, key=itemgetter(0))]

    def _file(self, part: _Partition, digest: bytes, decided: _Decided, sampled: bool) -> Iterator[Example]:
        part.newest_us = max(part.newest_us, decided.event_time_us)
        day = day_of(decided.event_time_us)
        if day < self._forgotten_day(part):
            return
        part.decided[digest] = decided
        part.by_day[day].append(digest)
        if sampled:
            heapq.heappush(part.maturing, (decided.event_time_us + self._options.maturity_us, digest))
        for label in part.waiting.pop(digest, ()):
            if label.waits:
                label.waits = False
                yield from self._join(part, digest, decided, label)

    def _take(self, part: _Partition, digest: bytes, label: _Label) -> Iterator[Example]:
        decided = self._find(part, digest)
        if decided is not None:
            yield from self._join(part, digest, decided, label)
            return
        part.waiting.setdefault(digest, []).append(label)
        heapq.heappush(part.oldest, (label.known_at_us, label.row, digest, label))
        self.counts["label", "early"] += 1

    def _find(self, part: _Partition, digest: bytes) -> _Decided | None:
        decided = part.decided.get(digest)
        if decided is None or day_of(decided.event_time_us) < self._forgotten_day(part):
            return None
        return decided

    def _join(self, part: _Partition, digest: bytes, decided: _Decided, label: _Label) -> Iterator[Example]:
        options, event_time_us = self._options, decided.event_time_us
        if label.known_at_us - event_time_us > options.label_horizon_us:
            self.counts["label", "too_late"] += 1
            return
        known = part.known.setdefault(digest, _Known())
        if known.told == 0 and label.sampled and label.known_at_us > event_time_us + options.maturity_us:
            # By the times alone it had been presumed legitimate before.
            known.told = 1
        before = known.state[2]
        known.state, outcome = resolve_numbers(known.state, label.rank, label.labelled_at_us, label.known)
        self.counts["label", OUTCOMES[outcome]] += 1
        now_known = known.state[2]
        if now_known in (before, _NOTHING):
            return
        if now_known == _LEGITIMATE and known.told == 0 and not label.sampled:
            self.counts["label", "not_sampled"] += 1
            return
        weight = 1.0 / options.negative_sample_rate if now_known == _LEGITIMATE and label.sampled else 1.0
        said = LEGITIMATE if now_known == _LEGITIMATE else FRAUD
        yield self._tell(decided, known, said, label.source, label.known_at_us, weight)

    def _presume(self, part: _Partition) -> Iterator[Example]:
        """What has matured, as `FeedbackPartition` presumes it."""
        most = PRESUME_AT_MOST
        while part.maturing and part.maturing[0][0] <= part.newest_us and most:
            at_us, digest = heapq.heappop(part.maturing)
            most -= 1
            decided = self._find(part, digest)
            if decided is None:
                continue
            known = part.known.setdefault(digest, _Known())
            if known.told or known.state[2] != _NOTHING:
                continue
            yield self._tell(
                decided, known, "presumed_legitimate", None, at_us, 1.0 / self._options.negative_sample_rate
            )

    def _tell(
        self, decided: _Decided, known: _Known, label: str, source: str | None, known_at_us: int, weight: float
    ) -> Example:
        served, row = decided.served, decided.row
        taken = served.transactions
        values: list[float] = served.features[row].tolist()
        example = Example(
            transaction_id=taken.transaction_id[row].as_py(),
            card_id=taken.card_id[row].as_py(),
            merchant_id=taken.merchant_id[row].as_py(),
            event_time=_EPOCH + timedelta(microseconds=decided.event_time_us),
            amount_base=int(taken.amount_base_minor[row]) / 100,
            label=label,
            label_source=source,
            known_at=_EPOCH + timedelta(microseconds=known_at_us),
            weight=weight,
            revision=known.told,
            features={
                name: None if math.isnan(value) else value for name, value in zip(self._kept, values, strict=True)
            },
            logit=float(served.logit[row]),
            score=float(served.score[row]),
            versions=served.versions,
            log=LogPosition(partition=0, offset=int(taken.row[row])),
        )
        self.counts["example", label] += 1
        known.told += 1
        return example

    def _forget(self, part: _Partition) -> None:
        """Let go of labels that have waited in vain, and of decisions behind the horizon."""
        limit_us = part.newest_us - PATIENCE_US
        while part.oldest and part.oldest[0][0] < limit_us:
            _, _, digest, label = heapq.heappop(part.oldest)
            if label.waits:
                label.waits = False
                self.counts["label", "unknown_transaction"] += 1
                if not any(one.waits for one in part.waiting.get(digest, ())):
                    part.waiting.pop(digest, None)
        first = self._forgotten_day(part)
        if first == part.first_day:
            return
        part.first_day = first
        for day in [day for day in part.by_day if day < first]:
            for digest in part.by_day.pop(day):
                decided = part.decided.get(digest)
                # One that was decided again since, with another time, stands under its own day.
                if decided is not None and day_of(decided.event_time_us) == day:
                    del part.decided[digest]
                    part.known.pop(digest, None)

    def _forgotten_day(self, part: _Partition) -> int:
        horizon_us = max(self._options.label_horizon_us, self._options.maturity_us)
        return max(0, day_of(part.newest_us - horizon_us - PATIENCE_US))

    def _sampled(self, of: Transactions | Labels) -> list[bool]:
        positions = sample_positions(identities(of.card_id, of.transaction_id), NEGATIVE_SAMPLE)
        sampled: list[bool] = (positions < self._options.negative_sample_rate).tolist()
        return sampled

    def _labels(self, labels: Labels) -> list[_Label]:
        columns = (
            labels.row.tolist(),
            labels.source.to_pylist(),
            labels.rank.tolist(),
            labels.known.tolist(),
            labels.labelled_at_us.tolist(),
            labels.known_at_us.tolist(),
            self._sampled(labels),
        )
        return [_Label(*values) for values in zip(*columns, strict=True)]


def _digests(of: Transactions | Labels) -> list[bytes]:
    packed = digest_keys(of.card_id, of.transaction_id).astype(">i8").tobytes()
    return [packed[start : start + 16] for start in range(0, len(packed), 16)]


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
