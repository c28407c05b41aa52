"""Why an alert was raised, in codes that systems can count by and sentences that an analyst can read.

The contributions of features with the same reason text are added up; each text is one reason.
`reason_texts.CODES` lists them all.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Final, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.decision.lists import Listed, ListSet
from pipeline.decision.policy import BY_AUDIT, BY_LIST, Policy
from pipeline.decision.reason_texts import REASON_TEXTS, Facts, ReasonText, WordedReason, pattern
from pipeline.decision.rule_program import Read
from pipeline.decision.rules import COLUMNS, Rule, RuleSet, condition_of
from pipeline.expressions.trees import fields_in
from pipeline.features.catalogue import FEATURES
from pipeline.scoring.errors import ModelError
from pipeline.scoring.kinds import BESIDE, ModelKind, Scorer
from pipeline.scoring.lightgbm_model import LightGBMModel
from schemas.fields import PERSONAL
from schemas.messages import Reason

SMALLEST_CONTRIBUTION: Final = 0.25
"""Log-odds below which a reason is left out: it changes the odds by less than 28 percent."""
STRONG_CONTRIBUTION: Final = 0.7
"""Log-odds from which a reason in general terms stands beside others: it doubles the odds."""
NOTABLE_ODDS: Final = 1.2
"""Smallest multiple of the odds that a sentence names."""

_MOST_FIRED: Final = 6
"""Values in the sentence of a rule."""
_LONGEST_FIRED: Final = 40
"""Characters of a text among them."""

_COLUMNS: Final = [(text, [FEATURES.index(name) for name in text.features]) for text in REASON_TEXTS]


class ScoringModels(Protocol):
    """The versions that scored the transactions."""

    @property
    def lightgbm(self) -> LightGBMModel:
        """The champion."""

    @property
    def beside(self) -> Mapping[str, Scorer]:
        """The models that are scored beside it, by kind, in the order of `BESIDE`."""

    @property
    def policy(self) -> Policy:
        """The policy that selected them."""

    @property
    def evaluated_rules(self) -> RuleSet:
        """The rules that were evaluated."""

    @property
    def lists(self) -> ListSet:
        """The lists that decided."""


def explain(
    features: NDArray[np.float64],
    logit: NDArray[np.float64],
    models: ScoringModels,
    selections: Sequence[str | None],
    hits: Sequence[tuple[int, ...]] | NDArray[np.object_],
    read: Read,
    currency: str = "",
    home_amounts: Sequence[str] | None = None,
    listed: Sequence[Listed] | NDArray[np.object_] = (),
) -> list[list[Reason]]:
    """Return the reasons of n alerts, at least one and at most the policy's ``max_reasons`` each.

    Block lists, rules that hold and audit samples come first, then what raised the log-odds of the score, the largest
    first. Costs some hundred microseconds a row.

    Args:
        features: Shape (n, len(FEATURES)), NaN for no value.
        logit: Shape (n,), LightGBM's log-odds as scored.
        models: The versions that scored them.
        selections: Why each was raised.
        hits: Numbers of the rules that hit each, of ``models.evaluated_rules``.
        read: Returns a column that rules read, by its name; called where a rule has hit.
        currency: Code of the base currency, for the sentences.
        home_amounts: Amounts in other currencies, each with its code; ``""`` where it is the base currency.
        listed: What lists say of each; needed where a block list raised one.
    """
    policy, logit = models.policy, np.ascontiguousarray(logit)
    contributions = models.lightgbm.contributions(features)
    added = [
        (kind, weight * (model.logit(features, logit) - logit), model.evidence(features, logit))
        for kind, model, weight in zip(BESIDE, models.beside.values(), policy.model_weights, strict=True)
    ]
    rules, reasons, column = models.evaluated_rules, [], cache(read)
    for i, row in enumerate(features):
        hit = [rules.evaluated[number] for number in hits[i] if number < rules.alerting]
        first = [_rule_reason(rule, column, i) for rule in hit]
        if selections[i] == BY_AUDIT:
            first.append(_AUDIT)
        if selections[i] == BY_LIST and (block := models.lists.blocking(listed[i].names)) is not None:
            sentence = f"Its {block.field} is on the block list {block.name}."
            first.insert(
                0, Reason(code="BLOCK_LIST", feature=block.field, value=None, contribution=0.0, sentence=sentence)
            )
        reasons.append(
            explain_row(
                row,
                contributions[i],
                [score_reason(kind, float(weights[i]), evidence[i]) for kind, weights, evidence in added],
                first,
                policy.max_reasons,
                currency,
                home_amounts[i] if home_amounts is not None else "",
            )
        )
    return reasons


def explain_row(
    row: NDArray[np.float64],
    contributions: NDArray[np.float64],
    beside: Sequence[Reason],
    first: Sequence[Reason],
    max_reasons: int,
    currency: str,
    home_amount: str = "",
) -> list[Reason]:
    """Reasons of one alert: ``first``, then positive contributions, the largest first.

    ``row`` and ``contributions`` (log-odds) have shape (len(FEATURES),); ``beside`` are the reasons of the models
    beside LightGBM. A reason in general terms is left out beside others, unless it is strong. Where nothing
    was raised, the largest contribution there is stands alone.
    """
    facts, parts = Facts(row, currency, home_amount), contributions.tolist()
    weights = [round(sum([parts[column] for column in columns]), 4) for _, columns in _COLUMNS]
    # Only what the values bear out becomes a sentence: all that is more than noise, or else the largest, which may be
    # several. A weight that is not a number is below nothing.
    least = min(SMALLEST_CONTRIBUTION, max(weights))
    worded = [
        (_worded(text, columns, facts, parts), weight)
        for (text, columns), weight in zip(_COLUMNS, weights, strict=True)
        if not weight < least
    ]
    general = {wording.code for wording, _ in worded if wording.general}
    candidates = [_reason(wording, facts, weight) for wording, weight in worded]
    candidates += [reason for reason in beside if not reason.contribution < least]
    candidates.sort(key=_by_contribution)
    raised: dict[str, Reason] = {}
    for reason in candidates:
        if reason.contribution < SMALLEST_CONTRIBUTION:
            break
        # Two reason texts can have one code (a general one, where their values say nothing by themselves).
        same = raised.get(reason.code, reason)
        total = reason.contribution if same is reason else same.contribution + reason.contribution
        raised[reason.code] = msgspec.structs.replace(same, contribution=round(total, 4))
    if first or not general.issuperset(raised):
        raised = {
            code: reason
            for code, reason in raised.items()
            if code not in general or reason.contribution >= STRONG_CONTRIBUTION
        }
    found = [*first, *sorted(raised.values(), key=_by_contribution)]
    return (found or candidates[:1])[:max_reasons]


def _rule_reason(rule: Rule, column: Read, row: int) -> Reason:
    """Return the reason of a rule that hit: its sentence, with the values that it read, and the first feature's."""
    names = sorted(fields_in(condition_of(rule)), key=lambda name: (rule.expression.find(name), name))
    shown = [f"{name} {_fired(column(name)[row])}" for name in names if name not in PERSONAL][:_MOST_FIRED]
    sentence = f"{rule.reason.rstrip().removesuffix('.')} ({', '.join(shown)})." if shown else rule.reason
    feature = next((name for name in names if name in COLUMNS), None)
    value = None if feature is None else _value(column(feature)[row])
    return Reason(
        code=rule.code, feature=feature or "".join(names[:1]), value=value, contribution=0.0, sentence=sentence
    )


def _fired(value: float | str | None) -> str:
    """Write a value that a rule has read."""
    if isinstance(value, str):
        return value if len(value) <= _LONGEST_FIRED else f"{value[:_LONGEST_FIRED]}..."
    return "missing" if value is None or math.isnan(value) else repr(round(float(value), 4)).removesuffix(".0")


def _by_contribution(reason: Reason) -> tuple[float, str]:
    return -reason.contribution, reason.code


def _worded(text: ReasonText, columns: list[int], facts: Facts, parts: list[float]) -> WordedReason:
    return text.write(facts) or pattern(text, FEATURES[max(columns, key=parts.__getitem__)], facts)


def _reason(wording: WordedReason, facts: Facts, weight: float) -> Reason:
    return Reason(
        code=wording.code,
        feature=wording.feature,
        value=_value(facts[wording.feature]),
        usual=None if wording.usual is None else _value(wording.usual),
        contribution=weight,
        sentence=wording.sentence,
    )


def score_reason(kind: ModelKind, weight: float, evidence: str) -> Reason:
    """Return the reason for the log-odds that a model beside LightGBM added, with what it saw, in words."""
    if kind.reason is None:
        raise ModelError(f"the kind {kind.name!r} is registered without a reason")
    times = np.exp(min(weight, 20.0))
    raised = f"{times:.3g} times" if times >= NOTABLE_ODDS else "a little"
    sentence = (kind.reason.raised if weight > 0 else kind.reason.not_raised).format(
        evidence=f" ({evidence})" if evidence else "", times=raised
    )
    return Reason(
        code=kind.reason.code, feature=kind.name, value=None, contribution=round(weight, 4), sentence=sentence
    )


def _value(number: float) -> float | None:
    return None if math.isnan(number) else round(float(number), 4)


_AUDIT: Final = Reason(
    code="AUDIT_SAMPLE",
    feature="transaction_id",
    value=None,
    contribution=0.0,
    sentence="Chosen at random for audit, whatever its score; the answer shows what the models miss.",
)
