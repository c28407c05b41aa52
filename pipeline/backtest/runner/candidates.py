"""Candidates of a backtest: the models that it was asked for, and those that it trained."""

from collections.abc import Mapping
from typing import Final

from pipeline.backtest.engine.online import Learning
from pipeline.backtest.input.order import Order
from pipeline.backtest.labels.schedule import LabelMode
from pipeline.backtest.runner.model_library import ACTIVE, ModelLibrary
from pipeline.backtest.runner.replay import Candidate
from pipeline.backtest.runner.request import LATEST, UNTRAINED, Request
from pipeline.backtest.runner.result import Parameter
from pipeline.backtest.runner.thresholds import BUDGET, AlertThreshold
from pipeline.backtest.training.renewal import RenewalSchedule
from pipeline.backtest.training.rows import TrainingPeriod
from pipeline.backtest.training.variants import VariantTraining
from pipeline.decision.lists import NO_LISTS
from pipeline.decision.policy import Policy
from pipeline.engine.scores.active_models import ActiveModels
from pipeline.features.catalogue import FEATURES
from pipeline.learning.trained_labels import warning_of_labels
from pipeline.models.list_log import ListTime
from pipeline.scoring.prequential import Prequential
from pipeline.training.fit import Trained
from schemas.times import US_PER_DAY, moment

MOST_EXAMPLES: Final = 1_000_000
"""The newest examples by which models are compared before they learn; 40 MB."""
_POLICY_ALONE: Final = (AlertThreshold(),)


def candidates_of(
    request: Request, library: ModelLibrary, trained: Mapping[str, VariantTraining]
) -> dict[str, Candidate]:
    """The models that are asked for, and those that were trained, by the names of their variants.

    Args:
        request: Names models, thresholds and the online model's options.
        library: Loads the models; gives the active one where the request names none.
        trained: Trainings before the range, by variant; one that was refused gives no candidate.

    Returns:
        A candidate for each model and threshold; none where the models of live decisions are asked for.

    Raises:
        RegistryError: The registry cannot be read.
        ModelError: A model is missing or cannot be used.
    """
    named = dict(request.models)
    if not named and request.training is None:
        changed = request.policy is not None or request.online.blend is not None
        if request.order is Order.RECORDED and request.alert_thresholds == _POLICY_ALONE and not changed:
            return {}
        named = {ACTIVE: ACTIVE}
    known: dict[str, ActiveModels] = {
        name: version if isinstance(version, ActiveModels) else _version(request, library, version)
        for name, version in named.items()
    }
    parameters: dict[str, dict[str, Parameter]] = {name: {} for name in known}
    schedules = _schedules(request, trained)
    for name, (variant, every_us) in schedules.items():
        grown = trained[variant]
        if grown.trained is not None:
            river, rules = library.untrained_river(), library.rules()
            known[name] = ActiveModels(grown.trained.model, river, grown.trained.policy, rules=rules)
            parameters[name] = _training_parameters(grown.trained, grown.period, request, every_us)
    found, lists = {}, library.list_history.numbered(-1) if request.lists is ListTime.TODAY else NO_LISTS
    for name, active in known.items():
        for alert_threshold in request.alert_thresholds:
            under = _blended(request, active.policy)
            if alert_threshold.threshold is not None:
                under = under.replace(threshold=alert_threshold.threshold)
            models = (active if under is active.policy else active.under(under)).dated(lists)
            pace = alert_threshold.pace
            asked: dict[str, Parameter | None] = {
                BUDGET: alert_threshold.budget,
                "paced at alerts a day": None if pace is None else pace.alerts_per_day,
                "critical from": None if pace is None else pace.critical,
                "blend": request.online.blend,
            }
            described = parameters[name] | {key: value for key, value in asked.items() if value is not None}
            trained_as, every = schedules.get(name, (None, None))
            renewed = None
            if trained_as is not None and every is not None:
                renewed = RenewalSchedule(trained_as, every, alert_threshold.threshold)
            learning = _learning(request, library, models)
            found[name + alert_threshold.suffix] = Candidate(
                models, learning, alert_threshold, described, trained_as, renewed
            )
    return found


def _schedules(request: Request, trained: Mapping[str, VariantTraining]) -> dict[str, tuple[str, int | None]]:
    """Return what each variant is trained as, and how often: one that is renewed stands behind the one that is not."""
    renewed = {} if request.training is None else request.training.renewed
    found: dict[str, tuple[str, int | None]] = {}
    for name in trained:
        found[name] = name, None
        found |= {other: schedule for other, schedule in renewed.items() if schedule[0] == name}
    return found


def policy_to_train(request: Request, library: ModelLibrary) -> Policy | None:
    """The policy whose blend and audit rate a trained model is given; None where none is active."""
    policy = library.active_policy() if request.policy is None else library.policy(request.policy)
    return policy if request.online.blend is None else _blended(request, policy or Policy(0.5))


def _blended(request: Request, policy: Policy) -> Policy:
    return policy if request.online.blend in (None, policy.blend) else policy.replace(blend=request.online.blend)


def warnings_of_policies(candidates: Mapping[str, Candidate]) -> list[str]:
    """A sentence for each candidate whose threshold was chosen for another model."""
    found = []
    for name, candidate in candidates.items():
        made_for = candidate.models.policy.lightgbm_version
        if made_for is not None and made_for != candidate.models.lightgbm.version:
            found.append(
                f"{name}: the threshold of policy {candidate.models.policy.version} was chosen for LightGBM "
                f"{made_for}, not for {candidate.models.lightgbm.version}; name another --policy or a --threshold"
            )
    return found


def warnings_of_labels(request: Request, candidates: Mapping[str, Candidate]) -> list[str]:
    """Return a sentence for each LightGBM version that was trained under another label regime than the declared one."""
    if request.labels is LabelMode.RECORDED:
        return []
    regime = request.regime
    # What the backtest trains is trained under the regime.
    models = {
        item.models.lightgbm.version: item.models.lightgbm for item in candidates.values() if item.trained_as is None
    }
    found = [warning_of_labels(item, regime.reported, regime.maturity_days) for item in models.values()]
    return [item for item in found if item is not None]


def _version(request: Request, library: ModelLibrary, version: str) -> ActiveModels:
    lightgbm = library.lightgbm(version)
    return ActiveModels(
        lightgbm,
        library.latest_river()
        if request.river == LATEST
        else library.untrained_river()
        if request.river == UNTRAINED
        else library.river(request.river, lightgbm.version),
        library.policy_for(lightgbm.version) if request.policy is None else library.policy(request.policy),
        library.others(),
        library.rules(),
    )


def _learning(request: Request, library: ModelLibrary, models: ActiveModels) -> Learning | None:
    every_us = request.publish_every_us
    if every_us is None:
        return None
    return Learning(
        request.feedback_config(),
        every_us,
        *library.learner(models),
        prequential=Prequential(MOST_EXAMPLES),
        gate=request.online.blend is None,
    )


def _training_parameters(
    trained: Trained, period: TrainingPeriod, request: Request, every_us: int | None
) -> dict[str, Parameter]:
    names = trained.model.trained_on
    window_days = None if request.training is None else request.training.window_days
    without = [name for name in FEATURES if name not in names]
    text = f"without {', '.join(without)}" if len(without) < len(names) else ", ".join(names)
    return {
        "trained from": moment(period.from_us),
        "trained by what was known at": moment(period.known_us),
        "last target": moment(period.last_us),
        **({} if every_us is None else {"days to the next training": every_us / US_PER_DAY}),
        **({} if window_days is None else {"days trained on": window_days}),
        "features": f"{len(names)} of {len(FEATURES)}{f': {text}' if without else ''}",
    }
