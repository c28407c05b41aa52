"""Models that are trained again on a schedule while a range is decided."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from pipeline.backtest.engine.online import Periods
from pipeline.backtest.input.order import Chunk
from pipeline.backtest.training.rows import TrainingPeriod, TrainingRows
from pipeline.backtest.training.variants import Training, VariantTraining
from pipeline.decision.policy import Policy
from pipeline.engine.records.columns import Labels
from pipeline.engine.scores.active_models import ActiveModels
from pipeline.engine.scores.decisions import Decisions
from pipeline.models.registry import Registry
from pipeline.scoring.errors import ModelError


class RenewalSchedule(NamedTuple):
    """Schedule by which the models of a candidate are renewed."""

    variant: str
    """Name of what is trained."""
    every_us: int
    """Event time from one training to the next."""
    threshold: float | None = None
    """Threshold in place of the one that each training chooses."""

    def models(self, before: ActiveModels, grown: VariantTraining) -> ActiveModels:
        """Return what decides after a training: with the online model of before, and as before if it was refused."""
        if grown.trained is None:
            return before
        policy = grown.trained.policy
        if self.threshold is not None:
            policy = policy.replace(threshold=self.threshold)
        return replace(before, lightgbm=grown.trained.model, policy=policy)


class ModelRenewal:
    """Trains the models of candidates that see the same labels, whenever event time passes a boundary.

    The boundaries of a schedule lie so many days apart, from the begin of the range on. If there is no transaction
    between two of them, there is one training, at the later one. Schedules that share a boundary share the training.
    """

    def __init__(
        self,
        training: Training,
        first: TrainingPeriod,
        from_us: int,
        rows: TrainingRows | None,
        policy: Policy | None,
        registry: Registry,
        schedules: Mapping[str, RenewalSchedule | None],
        begins: Callable[[str], None],
    ) -> None:
        """Begin behind the training of ``first``.

        Args:
            training: What is trained, and how often.
            first: What was trained on before the range.
            from_us: Begin of the range.
            rows: Transactions before the range, and their labels; those of the range are added. None where no candidate
                is renewed, which is decided in the same parts as others are.
            policy: Gives blend and audit rate of the policies.
            registry: Where versions are kept, if that is asked for.
            schedules: How the models of each candidate are renewed, by its name.
            begins: Called with the name of a variant before it is trained.
        """
        self._training, self._first, self._from_us, self._rows = training, first, from_us, rows
        self._policy, self._registry, self._schedules, self._begins = policy, registry, schedules, begins
        self.trainings: dict[str, list[VariantTraining]] = {name: [] for name in schedules}
        """Those within the range, of each candidate."""
        every_us = dict.fromkeys(every_us for _, every_us in training.renewed.values())
        self.periods = tuple(Periods(each_us, from_us) for each_us in every_us)
        """Between two trainings, of each schedule; the first one reaches back to the first transaction."""

    def take(self, labels: Labels, decisions: Decisions) -> None:
        """Keep labels, and the features of what was decided within the range."""
        if self._rows is None:
            return
        inside = decisions.transactions.event_time_us >= self._from_us
        matured = decisions if inside.all() else decisions.take(inside)
        self._rows.add(labels, matured.transactions, matured.features)

    def renew(self, part: Chunk, due: Sequence[Periods], models: Sequence[ActiveModels]) -> list[ActiveModels]:
        """Train what is due, and return the models from the first transaction of a part on.

        Args:
            part: Begins with a transaction, and with it a period of each schedule that is due.
            due: Periods that begin there; candidates of other schedules keep their models.
            models: Active models of each candidate, in the order of ``schedules``.

        Returns:
            Models of each candidate, in the same order; those of before where the training was refused.

        Raises:
            RegistryError: A version cannot be registered.
        """
        begin_us = {periods.every_us: periods.begin_us(int(part.transactions.event_time_us[0])) for periods in due}
        asks = {
            name: schedule
            for name, schedule in self._schedules.items()
            if schedule is not None and schedule.every_us in begin_us
        }
        # Schedules that meet here share what is trained.
        wanted = dict.fromkeys((begin_us[schedule.every_us], schedule.variant) for schedule in asks.values())
        trained = {
            known_us: self._trained(known_us, [variant for at_us, variant in wanted if at_us == known_us])
            for known_us in dict.fromkeys(at_us for at_us, _ in wanted)
        }
        found = []
        for name, active in zip(self._schedules, models, strict=True):
            if name in asks:
                grown = trained[begin_us[asks[name].every_us]][asks[name].variant]
                self.trainings[name].append(grown)
                found.append(asks[name].models(active, grown))
            else:
                found.append(active)
        return found

    def _trained(self, known_us: int, variants: Sequence[str]) -> dict[str, VariantTraining]:
        """Train some variants by what was known at a time."""
        period = self._training.at(self._first, known_us)
        if self._rows is None:
            raise ValueError("nothing was kept to train on")
        data = self._rows.training_set(period)
        found = {}
        for name in self._training.variants:
            if name in variants:
                self._begins(name)
                try:
                    found[name] = self._training.grow(name, data, period, self._policy, self._registry)
                except ModelError as error:
                    # As live: the version before goes on, and the report says why.
                    found[name] = VariantTraining(period, None, 0.0, str(error))
        return found
