"""Proposals: another recipe is compared with the active one as a procedure, in one look that is declared before."""

from typing import Any, Final, NamedTuple

import numpy as np

from pipeline.models.changes import ChangeAuthor
from pipeline.models.publish import ControlWriter, ModelChange
from pipeline.models.recipes import AGAINST_RECIPE, RECIPE
from pipeline.models.version_history import ACCEPTED, PROMOTE, VersionHistory
from pipeline.retraining.challenger import (
    Challenge,
    Champion,
    Comparison,
    ComparisonPeriod,
    CycleOptions,
    Recipe,
    challenge_of,
    compared_days,
    policy_for,
    recipe_of,
    scorings,
    trained_by,
)
from pipeline.retraining.cluster_reader import AS_OF, ClusterLog
from pipeline.retraining.gate import GateLimits, judge
from pipeline.retraining.paired import Scorings
from pipeline.scoring.errors import ModelError
from pipeline.training.served import ServedRows
from schemas.messages import Assessment
from schemas.times import US_PER_DAY

DECLARED: Final = "declared"
"""Outcome of the record that is written before the look."""
FAILED: Final = "failed"
"""Outcome of a look that could not be taken."""
FOLD_DAYS: Final = 7
_FROM, _TO = "compared_from_us", "compared_to_us"


class ProposalOutcome(NamedTuple):
    """Result of a proposal."""

    outcome: str
    """``accepted``, ``promoted``, ``rejected`` or ``kept``."""
    reason: str
    lightgbm: str


def active_champion(topics: ClusterLog) -> Champion:
    """Return the active version and its policy; raises `ModelError` without one."""
    champion = topics.champion()
    if champion is None:
        raise ModelError("no LightGBM version is active: publish one with `fraud-pipeline train --publish`")
    return champion


def compare_recipes(
    rows: ServedRows,
    champion: Champion,
    proposed: Recipe,
    period: ComparisonPeriod,
    limits: GateLimits,
    options: CycleOptions,
    fold_days: int = FOLD_DAYS,
) -> Challenge:
    """Compare a recipe with the active one by rolling origins, and train a version by it.

    Both recipes are trained at the start of each fold, by the labels that had come by then, and score the fold. An
    accepted recipe is then trained on all that is known by now; of a rejected one the last fold's version is returned.
    It must find more frauds, on mature days.

    Raises:
        ModelError: There is too little to train on or to compare on, or trees learned nothing.
    """
    active, parts = recipe_of(champion.model), []
    compared = rows.between(*period)
    for origin_us in range(period.start_us, period.end_us, fold_days * US_PER_DAY):
        end_us = min(origin_us + fold_days * US_PER_DAY, period.end_us)
        fold = compared.between(origin_us, end_us)
        trial, reference = (trained_by(recipe, rows, origin_us, champion, options) for recipe in (proposed, active))
        parts.append(scorings(fold, champion, trial.model, reference.model))
    try:
        scored = Scorings(*map(np.concatenate, zip(*parts, strict=True)))
        judgement = judge(scored, compared.amount, limits._replace(superior=True))
    except ValueError as error:
        raise ModelError(str(error)) from error
    if judgement.accepted:
        trial = trained_by(proposed, rows, int(rows.event_time_us[-1]), champion, options)
    return challenge_of(judgement, trial, rows, champion, limits)


def period_of_look(history: VersionHistory, recipe: str, now: ComparisonPeriod) -> ComparisonPeriod:
    """Return the days on which a recipe may be compared: one look at each day.

    A look that was declared and never ended is taken on the days of its declaration. One that failed has shown nothing.

    A new look would take the days ``now``.

    Raises:
        ModelError: The recipe was compared on some of these days before.
    """
    looks: list[Assessment] = [
        event for event in history.events if isinstance(event, Assessment) and event.figures.get(RECIPE) == recipe
    ]
    if looks and looks[-1].outcome == DECLARED:
        return ComparisonPeriod(looks[-1].figures[_FROM], looks[-1].figures[_TO])
    compared = [look for look in looks if look.outcome not in (DECLARED, FAILED)]
    seen_us = max((int(look.figures.get(_TO, 0)) for look in compared), default=0)
    if seen_us > now.start_us:
        days = -(-(seen_us - now.start_us) // US_PER_DAY)
        raise ModelError(
            f"this recipe was {compared[-1].outcome} on days that would be looked at again: wait for {days} more days, "
            "or compare on fewer with --compare-days"
        )
    return now


def propose(
    topics: ClusterLog,
    writer: ControlWriter,
    proposed: Recipe,
    author: ChangeAuthor,
    options: CycleOptions,
    *,
    second_approval: bool,
    fold_days: int = FOLD_DAYS,
) -> ProposalOutcome:
    """Declare a comparison, make it, and record what came of it.

    Args:
        topics: The cluster's topics, read already.
        writer: Writes to ``control`` and ``models``.
        proposed: The recipe, which must differ from the active one.
        author: Who proposes it, and why.
        options: Give the days of the comparison, and how labels are taken.
        second_approval: Leave an accepted version for another person to approve; else it becomes active.
        fold_days: Days that a version scores before the next one is trained.

    Raises:
        ModelError: Nothing can be compared; the sentence says why.
        DeliveryFailed: A record was not written.
    """
    champion, rows = active_champion(topics), topics.served.rows()
    if not len(rows):
        raise ModelError("topic features holds no decision of this kernel version yet: propose once there are some")
    active = recipe_of(champion.model)
    if proposed.digest == active.digest:
        raise ModelError(f"this is the recipe of the active version {champion.model.version}: change something in it")
    history = topics.published.history
    period = period_of_look(history, proposed.digest, compared_days(rows, options))
    limits = GateLimits(alerts_per_day=champion.alerts_per_day)
    against = topics.tenures(champion)[-1].references
    figures: dict[str, Any] = {
        RECIPE: proposed.digest,
        AGAINST_RECIPE: active.digest,
        AS_OF: int(rows.event_time_us[-1]),
        _FROM: period.start_us,
        _TO: period.end_us,
        "fold_days": fold_days,
        "level": limits.level,
        "alerts_per_day_budget": limits.alerts_per_day,
        "offsets": topics.offsets,
    }
    look = Comparison(champion, rows, limits, against, figures)
    writer.assess(DECLARED, [], against, ModelChange(DECLARED, author.by, author.reason, figures))
    try:
        found = compare_recipes(rows, champion, proposed, period, limits, options, fold_days)
    except ModelError as error:
        failed = ModelChange(FAILED, author.by, f"{author.reason} {error}", figures)
        writer.undisturbed(lambda: writer.assess(FAILED, [], against, failed))
        raise
    figures |= found.judgement.figures
    return writer.undisturbed(
        lambda: _concluded(topics, writer, look, found, author, second_approval=second_approval), topics.read_control
    )


def _concluded(
    topics: ClusterLog,
    writer: ControlWriter,
    look: Comparison,
    found: Challenge,
    author: ChangeAuthor,
    *,
    second_approval: bool,
) -> ProposalOutcome:
    """Record the outcome, and make an accepted version active where nobody has to approve it."""
    current = active_champion(topics)
    outcome, reason = ACCEPTED if found.judgement.accepted else "rejected", found.judgement.reason
    if recipe_of(current.model).digest != look.figures[AGAINST_RECIPE]:
        outcome, reason = "kept", "the active recipe was changed while the other one was compared"
    elif current.policy.digest != look.champion.policy.digest:
        # Pacing goes on meanwhile.
        found = found._replace(policy=policy_for(look.rows, found.trained.model, current, look.limits))
    versions, why = writer.contents(found.versions), f"{author.reason} {reason}"
    writer.assess(outcome, versions, look.against, ModelChange(outcome, author.by, why, look.figures))
    if outcome == ACCEPTED and not second_approval:
        writer.activate(versions, ModelChange(PROMOTE, author.by, why, look.figures))
        outcome = "promoted"
    return ProposalOutcome(outcome, reason, found.trained.model.version)
