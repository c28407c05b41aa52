"""Models that a backtest trains for itself: on features that the kernel gives of a period before its range."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.backtest.engine import Profiled
from pipeline.backtest.labelling import Schedule
from pipeline.backtest.order import Chunk, Order, alone, checked, merged
from pipeline.backtest.run import profile_chunks
from pipeline.backtest.sources import EARLIEST_US, RangeError, moment, time_us
from pipeline.decision.policy import Policy
from pipeline.engine.card import CardOptions
from pipeline.engine.columns import Labels, Transactions, digest_keys, name_keys
from pipeline.features.catalogue import US_PER_DAY, US_PER_SECOND
from pipeline.learning.labels import FRAUD, KNOWN, SOURCE_RANK, holding
from pipeline.learning.regimes import NEVER_US, LabelRegime
from pipeline.learning.report_delays import ReportDelays
from pipeline.learning.trained_labels import TrainedLabels
from pipeline.registry import Registry
from pipeline.training.cohorts import Split, split_cohorts
from pipeline.training.early_reports import EarlyReports
from pipeline.training.fit import Trained, TrainingConfig, TrainingSet, train
from pipeline.training.registered import register
from pipeline.training.selection import select_features


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """LightGBM models that are trained before a range is decided, and decide it beside the others."""

    variants: Mapping[str, Sequence[str]]
    """Names, and which features each is trained on: patterns of `pipeline.training.selection.select_features`."""
    start: datetime
    """Event time of the first transaction to train on (UTC without an offset)."""
    end: datetime | None = None
    """Only what was known by then is used. Default: where the range begins."""
    gap_s: float | None = None
    """Transactions of the last ``gap_s`` before the end are no targets, since not all of their labels are known.
    Default: the labels' delay where a file's truth becomes labels, else the setting ``maturity_days``."""
    alerts_per_day: float = 100.0
    """For which the new policies' thresholds are chosen, where no other is asked for."""
    config: TrainingConfig = field(default_factory=TrainingConfig)
    register: bool = False
    """Whether the models and their policies are kept in the registry; they are not put in force."""

    early_reports: bool = True
    """Whether the models are grown on younger transactions too, where a file's truth becomes labels."""

    def period(self, from_us: int, gap_s: float, validation_days: float, regime: LabelRegime | None = None) -> "Period":
        """What to train on before a range that begins at ``from_us``; ``gap_s`` where no other is asked for.

        ``regime`` is that of labels that are not recorded. Raises ValueError for a training that would know what is
        still to come, and `RangeError` for one that is too short, `pipeline.scoring.errors.ModelError` for features
        that there are not.
        """
        # Before anything is read: a name that is wrong should not cost the time of a training.
        self._features()
        if self.end is None and from_us <= EARLIEST_US:
            raise ValueError("a model is trained on what lies before the range: say where that begins (--from)")
        known_us = time_us(self.end, from_us)
        if known_us > from_us:
            raise ValueError(
                f"the training ends at {moment(known_us)}, within the range, and would know what is still to come: end "
                "it where the range begins, or before"
            )
        gap_us = round((gap_s if self.gap_s is None else self.gap_s) * US_PER_SECOND)
        validation_us = round(validation_days * US_PER_DAY)
        begin_us = time_us(self.start, EARLIEST_US)
        period = Period(begin_us, known_us, gap_us, validation_us, regime, self.early_reports)
        if period.last_us - period.validation_us <= period.from_us:
            raise RangeError(
                f"nothing is left to train on from {moment(period.from_us)} by what is known at {moment(known_us)}: "
                f"{gap_us / US_PER_DAY:g} days go to the labels' delay and {validation_days:g} to the validation; "
                "begin earlier with --train-from"
            )
        return period

    def growing(
        self, rows: "TrainingRows", period: "Period", policy: Policy | None, registry: Registry
    ) -> Iterator[tuple[str, Callable[[], Trained]]]:
        """Of each variant its name, and what trains it; ``policy`` gives rules, blend and audit rate.

        What trains raises `pipeline.scoring.errors.ModelError`, `pipeline.registry.RegistryError`.
        """
        data = rows.training_set()

        def grow(features: tuple[str, ...]) -> Trained:
            trained = train(
                data,
                period.split(data),
                alerts_per_day=self.alerts_per_day,
                config=self.config,
                policy=policy,
                features=features,
                early=period.early,
                labels=period.labels,
            )
            if self.register:
                register(registry, trained)
            return trained

        for name, features in self._features().items():
            yield name, partial(grow, features)

    def _features(self) -> dict[str, tuple[str, ...]]:
        return {name: select_features(patterns) for name, patterns in self.variants.items()}


class Period(NamedTuple):
    """What is trained on, in microseconds since 1970-01-01T00:00:00Z."""

    from_us: int
    known_us: int
    """What became known later is not used."""
    gap_us: int
    validation_us: int
    regime: LabelRegime | None = None
    """That of labels that are not recorded."""
    early_reports: bool = False
    """Whether transactions behind the last target are trained on too, as far as ``regime`` tells of them."""

    @property
    def last_us(self) -> int:
        """Event time of the last target."""
        return self.known_us - self.gap_us

    @property
    def early(self) -> EarlyReports | None:
        """How reports of transactions behind the last target are taken; None: such transactions are left out."""
        if self.regime is None or not self.early_reports:
            return None
        return EarlyReports(self.known_us, ReportDelays.declared(self.regime))

    @property
    def labels(self) -> TrainedLabels:
        """The labels of the training, for the models' metadata."""
        return TrainedLabels(self.known_us, self.gap_us, {} if self.regime is None else self.regime.describe())

    @property
    def newest_us(self) -> int:
        """Event time of the last transaction that may teach."""
        return self.last_us if self.early is None else self.known_us

    def split(self, data: TrainingSet) -> Split:
        """The period's targets, the last of them to stop, calibrate and set thresholds on. Raises `ModelError`."""
        return split_cohorts(
            data.event_time_us,
            label_delay_us=self.gap_us,
            validation_us=self.validation_us,
            train_from_us=self.from_us,
            known_before_us=self.known_us,
        )


class TrainingRows:
    """Targets of a period with what is known about them; 600 bytes of memory each."""

    def __init__(self, period: Period) -> None:
        self._period = period
        self._rows: list[tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]] = []
        self._labels: list[NDArray[np.int64]] = []

    def __len__(self) -> int:
        return sum(len(times) for _, times, _, _ in self._rows)

    def add(self, chunk: Chunk, profiled: Profiled) -> None:
        """Keep the targets of a chunk, and what its labels say."""
        taken, period = profiled.transactions, self._period
        inside = (taken.event_time_us >= period.from_us) & (taken.event_time_us <= period.newest_us)
        if inside.any():
            of = taken.take(inside)
            cards, digests = name_keys(of.card_id)[:, 0], digest_keys(of.card_id, of.transaction_id)
            self._rows.append((profiled.features[inside], of.event_time_us, cards, digests))
        labels = chunk.labels
        said = labels.rank != SOURCE_RANK["rule"]
        if said.any():
            told = labels.take(said)
            high, low = digest_keys(told.card_id, told.transaction_id).T
            self._labels.append(np.stack([high, low, told.rank, told.labelled_at_us, told.known, told.known_at_us]))

    def training_set(self) -> TrainingSet:
        """All of it, each a fraud whose label that holds says so; at least one transaction was added.

        To be called once: nothing is kept here behind it, since it is large.
        """
        kept, self._rows = self._rows, []
        features, times, cards, digests = (np.concatenate(columns) for columns in zip(*kept, strict=True))
        reported_us = self._reported_us(digests)
        return TrainingSet(
            features,
            reported_us < NEVER_US,
            np.ones(len(times)),
            times,
            np.asarray(pd.factorize(cards)[0], np.int64),
            reported_us,
        )

    def _reported_us(self, digests: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return when each target whose label that holds is fraud was first said to be; `NEVER_US` for the others."""
        found = np.full(len(digests), NEVER_US)
        if not self._labels:
            return found
        high, low, rank, at_us, known, known_at_us = np.concatenate(self._labels, axis=1)
        rows = holding([low, high], rank, at_us, known)
        rows = rows[known[rows] == KNOWN.index(FRAUD)]
        frauds = pd.MultiIndex.from_arrays([high[rows], low[rows]])
        said = np.flatnonzero(known == KNOWN.index(FRAUD))
        first_us = pd.Series(known_at_us[said]).groupby([high[said], low[said]]).min().reindex(frauds).to_numpy()
        place = frauds.get_indexer(pd.MultiIndex.from_arrays([digests[:, 0], digests[:, 1]]))
        found[place >= 0] = first_us[place[place >= 0]]
        return found


def read_rows(
    chunks: Iterator[Chunk], period: Period, options: CardOptions, note: Callable[[NDArray[np.int64]], None]
) -> TrainingRows:
    """Targets of ``period`` among records by event time, which begin with what warms the windows up.

    ``note`` is told the event times of each chunk's transactions.
    """
    rows = TrainingRows(period)
    with closing(profile_chunks(chunks, options)) as passed:
        for chunk, profiled in passed:
            rows.add(chunk, profiled)
            note(profiled.transactions.event_time_us)
    return rows


def known_by(labels: Iterator[Labels], until_us: int) -> Iterator[Labels]:
    """The labels, in the order of ``known_at``, that are known at ``until_us``; no more is read than tells so."""
    for part in labels:
        inside = part.known_at_us <= until_us
        yield part.take(inside)
        if not inside.all():
            return


def scheduled(transactions: Iterator[Transactions], schedule: Schedule, until_us: int) -> Iterator[Chunk]:
    """Transactions that bear their truth, by event time, with the labels that are due, up to ``until_us``."""
    for part in checked(transactions, "transaction", Order.EVENT_TIME):
        yield merged(part, schedule.until(part), Order.EVENT_TIME)
    yield from map(alone, known_by(iter([schedule.rest()]), until_us))
