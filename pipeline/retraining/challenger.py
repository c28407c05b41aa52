"""A challenger: trained by the recipe of the active version, assessed by the gate, trained on all that is known."""

from datetime import datetime
from typing import Annotated, Any, Final, NamedTuple

import lightgbm
import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from pipeline.decision.budget import budget_threshold, case_numbers, highest_of_cases
from pipeline.decision.policy import Policy
from pipeline.learning.regimes import LabelRegime
from pipeline.learning.report_delays import FALLBACK, ReportDelays, described_by_source
from pipeline.learning.trained_labels import LABELS, TrainedLabels
from pipeline.models.publish import VersionToPublish
from pipeline.models.recipes import ABSENT_HYPERPARAMETERS, LABEL_HANDLING, TREELESS, inherited, recipe_digest
from pipeline.retraining.gate import GateLimits, Judgement, judge, rescored
from pipeline.retraining.paired import Scorings
from pipeline.scoring.blend import sigmoid
from pipeline.scoring.errors import ModelError
from pipeline.scoring.lightgbm_model import LightGBMModel
from pipeline.training.early_reports import EarlyReports
from pipeline.training.fit import DEFAULT_BUDGET, Trained, TrainingConfig, train
from pipeline.training.served import ServedRows
from schemas.messages import VersionReference
from schemas.times import US_PER_DAY, US_PER_HOUR

THRESHOLD_DAYS: Final = 7.0
"""Newest days whose scores choose the first threshold."""
MOST_RECENT_SCORES: Final = 3_500
"""Scores that fit into the 64 KiB of a policy's metadata."""
LEAST_RECENT_SCORES: Final = 1_000


class Champion(NamedTuple):
    """The active version and its policy."""

    model: LightGBMModel
    policy: Policy

    @property
    def alerts_per_day(self) -> float:
        """Budget that the policy was made for; `DEFAULT_BUDGET` where it does not say."""
        budget = self.policy.metadata.get("alerts_per_day")
        usable = isinstance(budget, int | float) and not isinstance(budget, bool) and 0 < budget < 1e9
        return float(budget) if usable else DEFAULT_BUDGET  # type: ignore[arg-type]

    @property
    def inherited(self) -> Policy:
        """The policy that the next version takes over."""
        return inherited(self.policy, self.model.metadata)

    @property
    def has_trees(self) -> bool:
        """False for the version of a cold start, beside which the online model scores alone."""
        return TREELESS not in self.model.metadata


class CycleOptions(NamedTuple):
    """Options of training and comparing challengers."""

    maturity_days: Annotated[
        float | None,
        Meta(
            ge=0,
            description="Age at which a transaction without a reported fraud is legitimate; no younger one teaches "
            "then.  [default: as old reports tell it, else the setting maturity_days]",
        ),
    ] = None
    fallback_days: float = FALLBACK.delay_days
    """The same, where too few reports show it."""
    early_reports: Annotated[
        bool, Meta(description="Train on younger transactions too, as far as the delays of old reports allow.")
    ] = True
    compare_days: Annotated[
        int, Meta(ge=2, description="Newest days of matured transactions on which the gate compares.")
    ] = 14
    validation_days: Annotated[
        float, Meta(gt=0, description="Last days of a training, which stop and calibrate it.")
    ] = 7.0
    threads: Annotated[int, Meta(ge=1, description="To train.")] = 1


class Recipe(NamedTuple):
    """The recipe of a version: features, hyperparameters and label handling."""

    config: TrainingConfig
    features: tuple[str, ...]
    early_reports: bool = True
    """Grow on younger transactions too, unless the options say otherwise."""
    maturity_days: float | None = None
    """`CycleOptions.maturity_days`, where that is None."""

    @property
    def handling(self) -> dict[str, Any]:
        """The label handling as versions keep it; empty where it is the usual one."""
        handling: dict[str, Any] = {} if self.early_reports else {"early_reports": False}
        return handling if self.maturity_days is None else {**handling, "maturity_days": self.maturity_days}

    @property
    def digest(self) -> str:
        """The digest that identifies a recipe."""
        return recipe_digest(msgspec.to_builtins(self.config), self.features, self.handling)


class Challenge(NamedTuple):
    """A challenger and what the gate says of it."""

    judgement: Judgement
    trained: Trained
    """After an acceptance the version to publish, else the one that was rejected."""
    policy: Policy

    @property
    def versions(self) -> list[VersionToPublish]:
        """The version and its policy."""
        return VersionToPublish.from_models(self.trained.model, self.policy)


class ComparisonPeriod(NamedTuple):
    """Days of a comparison, in microseconds since 1970."""

    start_us: int
    end_us: int


class Comparison(NamedTuple):
    """A comparison of a challenger: with which version, on which rows, and the figures to write."""

    champion: Champion
    rows: ServedRows
    limits: GateLimits
    against: list[VersionReference]
    figures: dict[str, Any]


def compared_days(rows: ServedRows, options: CycleOptions) -> ComparisonPeriod:
    """Return the days that the gate compares on: the newest of the rows, at least one, that are mature."""
    now_us = int(rows.event_time_us[-1])
    end_us = (now_us - _delays(rows, now_us, options).maturity_us) // US_PER_DAY * US_PER_DAY
    return ComparisonPeriod(end_us - options.compare_days * US_PER_DAY, end_us)


def trained_until_us(model: LightGBMModel) -> int | None:
    """Return the event time of the newest transaction that a version was trained on; None where it does not say."""
    as_of_us = model.metadata.get("as_of_us")
    if isinstance(as_of_us, int):
        return as_of_us
    if "early" in model.metadata:
        return None
    try:
        text = model.metadata["periods"]["validation"]["to"]
        return round(datetime.fromisoformat(text).timestamp() * 1e6)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def challenge(
    rows: ServedRows,
    champion: Champion,
    reference: LightGBMModel | None,
    limits: GateLimits,
    options: CycleOptions,
) -> Challenge:
    """Train a challenger and let the gate assess it.

    The gate assesses the recipe: a version trained as it could have been before the days of the comparison. After
    an acceptance the same recipe is trained on everything that is known by now.

    The reference is trained on nothing of these days; without one the scores as they were served are compared.

    Raises:
        ModelError: There is too little to train on or to compare on, or the trees learned nothing.
    """
    if not len(rows):
        raise ModelError("topic features holds no decision of this kernel version yet: retrain once there are some")
    now_us = int(rows.event_time_us[-1])
    start_us, end_us = compared_days(rows, options)
    recipe = recipe_of(champion.model)
    trial = trained_by(recipe, rows, start_us, champion, options)
    compared = rows.between(start_us, end_us)
    try:
        judgement = judge(scorings(compared, champion, trial.model, reference), compared.amount, limits)
    except ValueError as error:
        raise ModelError(str(error)) from error
    final = trained_by(recipe, rows, now_us, champion, options) if judgement.accepted else trial
    return challenge_of(judgement, final, rows, champion, limits)


def challenge_of(
    judgement: Judgement, trained: Trained, rows: ServedRows, champion: Champion, limits: GateLimits
) -> Challenge:
    """Return an assessed version with a policy for it; raises `ModelError` where it scores otherwise once read back."""
    policy = policy_for(rows, trained.model, champion, limits)
    _check_parity(rows, trained.model, policy)
    return Challenge(judgement, trained, policy)


def _delays(rows: ServedRows, as_of_us: int, options: CycleOptions) -> ReportDelays:
    """Return how long reports take, as it is known at a time."""
    if options.maturity_days is not None:
        return ReportDelays(LabelRegime(delay_days=options.maturity_days))
    fallback = LabelRegime(delay_days=options.fallback_days)
    return ReportDelays.estimated(rows.event_time_us, rows.reports_by(as_of_us), as_of_us, fallback=fallback)


def trained_by(recipe: Recipe, rows: ServedRows, as_of_us: int, champion: Champion, options: CycleOptions) -> Trained:
    """Train by a recipe as it is possible at a time, with budget, policy and label regime of the champion.

    Only labels that had come by then are used. What ``options`` have of label handling takes precedence over the
    recipe's.

    Raises:
        ModelError: There is too little to train on, or the trees learned nothing.
    """
    if options.maturity_days is None:
        options = options._replace(maturity_days=recipe.maturity_days)
    delays = _delays(rows, as_of_us, options)
    by_source = described_by_source(rows.event_time_us, rows.reported_us, rows.reported_by, as_of_us)
    handling = {LABEL_HANDLING: recipe.handling} if recipe.handling else {}
    try:
        return train(
            rows.training_set(as_of_us),
            rows.split(as_of_us, delays.maturity_us, options.validation_days),
            alerts_per_day=champion.alerts_per_day,
            config=msgspec.structs.replace(recipe.config, threads=options.threads),
            policy=champion.inherited,
            features=recipe.features,
            details={"as_of_us": as_of_us, **handling},
            early=EarlyReports(as_of_us, delays) if options.early_reports and recipe.early_reports else None,
            labels=TrainedLabels(as_of_us, delays.maturity_us, _regime(champion.model), by_source),
        )
    except lightgbm.basic.LightGBMError as error:
        raise ModelError(f"LightGBM cannot train by this recipe: {error}") from error


def _regime(model: LightGBMModel) -> dict[str, str | float]:
    """Return what a version says of the label regime that it was trained under."""
    labels = model.metadata.get(LABELS)
    regime = labels.get("regime") if isinstance(labels, dict) else None
    return regime if isinstance(regime, dict) else {}


class _Handling(msgspec.Struct):
    """The label handling in a version's metadata."""

    early_reports: bool = True
    maturity_days: float | None = None


def recipe_of(model: LightGBMModel) -> Recipe:
    """Return how a version was trained; the defaults where it does not say.

    Raises:
        ModelError: What it says makes no sense.
    """
    try:
        config = msgspec.convert(ABSENT_HYPERPARAMETERS | model.metadata.get("training", {}), TrainingConfig)
        handling = msgspec.convert(model.metadata.get(LABEL_HANDLING, {}), _Handling)
    except msgspec.ValidationError as error:
        raise ModelError(
            f"version {model.version} does not say how it was trained ({error}): publish one with "
            "`fraud-pipeline train --publish`"
        ) from error
    return Recipe(config, tuple(model.trained_on), handling.early_reports, handling.maturity_days)


def scorings(rows: ServedRows, champion: Champion, model: LightGBMModel, reference: LightGBMModel | None) -> Scorings:
    """Return the scores of a challenger and of a reference on the same rows; without one, those as they were served."""
    served = rows.score if reference is None else _scored(rows, champion, reference)
    return Scorings(_scored(rows, champion, model), served, rows.event_time_us, rows.card, rows.reported_us)


def _scored(rows: ServedRows, champion: Champion, model: LightGBMModel) -> NDArray[np.float64]:
    """Return a version's scores under the online model as served, or alone where that was all that scored."""
    logit = model.logit(rows.features)
    return rescored(logit, rows.logit, rows.score) if champion.has_trees else sigmoid(logit)


def policy_for(rows: ServedRows, model: LightGBMModel, champion: Champion, limits: GateLimits) -> Policy:
    """Return the policy that a version takes over, with a threshold for its own scores of the newest days.

    Args:
        rows: Decisions as served, at least one; the last `THRESHOLD_DAYS` days choose the threshold.
        model: The version.
        champion: The active version, whose policy is taken over. If it has no trees, ``model`` scores alone,
            else with the online model as served.
        limits: Give the cases a day that the threshold allows.
    """
    now_us = int(rows.event_time_us[-1])
    newest = rows.between(now_us - round(THRESHOLD_DAYS * US_PER_DAY), now_us + 1)
    score = _scored(newest, champion, model)
    # A shorter history has fewer days.
    days = max((now_us - int(newest.event_time_us[0])) / US_PER_DAY, 1.0)
    highest = highest_of_cases(score, case_numbers(newest.card, newest.event_time_us))
    threshold = budget_threshold(
        score[highest], np.ones(len(highest)), days, limits.alerts_per_day, exceed_for_ties=True
    )
    metadata = {
        "alerts_per_day": limits.alerts_per_day,
        "threshold_days": round(days, 3),
        "recent_scores": _recent_scores(score[highest], newest.event_time_us[highest], limits.alerts_per_day),
    }
    return champion.inherited.replace(threshold=threshold, lightgbm_version=model.version, metadata=metadata)


def _recent_scores(
    score: NDArray[np.float64], event_time_us: NDArray[np.int64], alerts_per_day: float
) -> list[tuple[int, float]]:
    """Return the highest of the cases' highest scores, each behind its hour since 1970, for whoever paces the alerts.

    There are twice as many as the budget allows, so that a pace can go below the first threshold.
    """
    most = min(max(LEAST_RECENT_SCORES, round(2 * THRESHOLD_DAYS * alerts_per_day)), MOST_RECENT_SCORES)
    rows = np.sort(np.argsort(-score, kind="stable")[:most])
    hours = (event_time_us[rows] // US_PER_HOUR).tolist()
    return [(hour, float(f"{value:.6g}")) for hour, value in zip(hours, score[rows].tolist(), strict=True)]


def _check_parity(rows: ServedRows, model: LightGBMModel, policy: Policy) -> None:
    """Raise `ModelError` unless workers that read the payloads score to the last bit as this process does."""
    newest = rows.take(slice(-100_000, None)).features
    read = LightGBMModel.from_payload(model.to_payload())
    same = np.array_equal(read.logit(newest).view(np.int64), model.logit(newest).view(np.int64))
    if not same or Policy.from_payload(policy.to_payload()).threshold != policy.threshold:
        raise ModelError(f"version {model.version} scores otherwise once it is read back: report it as a defect")
