"""Models that a backtest trains for itself: on features that the kernel gives of a period before its range."""

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, NamedTuple

from msgspec import Meta

from pipeline.backtest.engine.column_kernels import Engine, Profiled
from pipeline.backtest.input.order import Chunk
from pipeline.backtest.input.span import EARLIEST_US, RangeError, time_us
from pipeline.backtest.training.rows import TrainingPeriod, TrainingRows
from pipeline.decision.policy import Policy
from pipeline.engine.cards.card_options import CardOptions
from pipeline.engine.records.columns import Labels
from pipeline.learning.regimes import LabelRegime
from pipeline.models.registry import Registry
from pipeline.training.cohorts import TrainingSet
from pipeline.training.fit import DEFAULT_BUDGET, Trained, TrainingConfig, train
from pipeline.training.registered import register
from pipeline.training.selection import select_features
from schemas.limits import Limited
from schemas.times import US_PER_DAY, US_PER_SECOND, moment


class VariantTraining(NamedTuple):
    """A training of a variant."""

    period: TrainingPeriod
    trained: Trained | None
    """None where it was refused, so that the version before goes on deciding."""
    seconds: float
    refused: str = ""
    """The reason of the refusal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Training(Limited):
    """LightGBM models that are trained before a range is decided, and decide it beside the others.

    Raises:
        ValueError: A time is out of range.
    """

    variants: Annotated[
        Mapping[str, Sequence[str]],
        Meta(
            description="Train a model before the range, and decide by it: on the default features, or on those that "
            "match card_*,-*_std_*; may be repeated.",
            extra={"option": "--train", "metavar": "NAME[=FEATURES]"},
        ),
    ]
    """Features by the names of variants: patterns of `pipeline.training.selection.select_features`."""
    start: Annotated[
        datetime,
        Meta(description="Event time of the first transaction to train on.", extra={"option": "--train-from"}),
    ]
    end: Annotated[
        datetime | None,
        Meta(
            description="Train by what was known then.  [default: begin of the range]", extra={"option": "--train-to"}
        ),
    ] = None
    gap_s: Annotated[
        float | None,
        Meta(
            ge=0,
            description="From the last transaction to train on to that time.  [default: label delay of a file; else "
            "maturity_days]",
            extra={"option": "--train-gap"},
        ),
    ] = None
    early_reports: Annotated[
        bool,
        Meta(
            description="Train also on younger transactions, where a file's truth becomes labels: frauds as they are "
            "reported."
        ),
    ] = True
    renew_days: Annotated[
        Sequence[float],
        Meta(
            gt=0,
            description="Beside each variant, one that is trained again after so many days within the range; may be "
            "repeated.",
            extra={"option": "--renew", "metavar": "DAYS"},
        ),
    ] = ()
    window_days: Annotated[
        float | None,
        Meta(
            gt=0,
            description="Leave out transactions that are older than that when a training ends.  [default: none]",
            extra={"option": "--train-window", "metavar": "DAYS"},
        ),
    ] = None
    register: Annotated[bool, Meta(description="Keep what was trained in the registry; it is not activated.")] = False
    alerts_per_day: float = DEFAULT_BUDGET
    """Alerts a day for which the new policies' thresholds are chosen, where no other is asked for."""
    config: TrainingConfig = field(default_factory=TrainingConfig)
    """Hyperparameters of the trees."""

    @property
    def renewed(self) -> dict[str, tuple[str, int]]:
        """Names of the variants that are renewed: what each is trained as, and after how many microseconds again."""
        return {
            f"{name} every {'day' if days == 1 else f'{days:g} days'}": (name, max(round(days * US_PER_DAY), 1))
            for name in self.variants
            for days in self.renew_days
        }

    @property
    def names(self) -> list[str]:
        """Names of all variants."""
        return [*self.variants, *self.renewed]

    def period(
        self, from_us: int, gap_s: float, validation_days: float, regime: LabelRegime | None = None
    ) -> TrainingPeriod:
        """Return the training period before a range.

        Args:
            from_us: Begin of the range, in microseconds since 1970.
            gap_s: Seconds before the end without targets, where ``gap_s`` of this training is not set.
            validation_days: Last days of the period, which stop the training and set its threshold.
            regime: Regime of labels that are not recorded.

        Raises:
            ValueError: The training would know what is still to come.
            RangeError: The period is too short.
            ModelError: There are no such features.
        """
        # Before anything is read: a name that is wrong should not cost the time of a training.
        for patterns in self.variants.values():
            select_features(patterns)
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
        period = TrainingPeriod(self._from_us(known_us), known_us, gap_us, validation_us, regime, self.early_reports)
        if period.last_us - period.validation_us <= period.from_us:
            raise RangeError(
                f"nothing is left to train on from {moment(period.from_us)} by what is known at {moment(known_us)}: "
                f"{gap_us / US_PER_DAY:g} days go to the labels' delay and {validation_days:g} to the validation; "
                f"begin earlier with --train-from{'' if self.window_days is None else ', or widen --train-window'}"
            )
        return period

    def at(self, first: TrainingPeriod, known_us: int) -> TrainingPeriod:
        """Return the period of a later training than the ``first``, by labels known at ``known_us``."""
        return first._replace(from_us=self._from_us(known_us), known_us=known_us)

    def _from_us(self, known_us: int) -> int:
        start_us = time_us(self.start, EARLIEST_US)
        return start_us if self.window_days is None else max(start_us, known_us - round(self.window_days * US_PER_DAY))

    def grow(
        self, name: str, data: TrainingSet, period: TrainingPeriod, policy: Policy | None, registry: Registry
    ) -> VariantTraining:
        """Train a variant.

        Args:
            name: Name of the variant in ``variants``.
            data: Transactions by the labels that were known at the end of ``period``.
            period: Says which of them are targets, and which of these validate.
            policy: Gives blend and audit rate of the new policy. None: defaults.
            registry: Keeps the version, if ``register`` is set.

        Raises:
            ModelError: A period holds too few frauds, or the trees learned nothing.
            RegistryError: The version cannot be registered.
        """
        started_s = time.monotonic()
        trained = train(
            data,
            period.split(data),
            alerts_per_day=self.alerts_per_day,
            config=self.config,
            policy=policy,
            features=select_features(self.variants[name]),
            early=period.early,
            labels=period.labels,
        )
        if self.register:
            register(registry, trained)
        return VariantTraining(period, trained, time.monotonic() - started_s)


def read_rows(chunks: Iterator[Chunk], rows: TrainingRows, options: CardOptions) -> Generator[Profiled, None, None]:
    """Add records with the features of transactions to what can be trained on; each chunk's are passed on.

    Args:
        chunks: Chunks by event time, from the begin of the warm-up on.
        rows: Receive the transactions and labels.
        options: Options of a new engine, which is closed at the end.
    """
    with closing(Engine(options)) as engine:
        for chunk in chunks:
            profiled = engine.profile(chunk)
            rows.add(chunk.labels, profiled.transactions, profiled.features)
            yield profiled


def known_by(labels: Iterator[Labels], until_us: int) -> Iterator[Labels]:
    """The labels, in the order of ``known_at``, that are known at ``until_us``; no more is read than tells so."""
    for part in labels:
        inside = part.known_at_us <= until_us
        yield part.take(inside)
        if not inside.all():
            return
