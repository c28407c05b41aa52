"""The parts of a score: what each group of features, each other model and the base add to its log-odds.

LightGBM's log-odds are the sum of TreeSHAP's contributions and its expected value, held within `LOGIT_BOUND`. A River
layer adds a weighted sum of inputs to them. The policy weighs both, so that a score's log-odds are a sum of parts, each
computed by itself: what they leave of the score shows a defect.
"""

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.console.views import ShareRow
from pipeline.decision.reason_texts import REASON_TEXTS, Facts
from pipeline.engine.scores.active_models import ActiveModels
from pipeline.engine.scores.decisions import log_odds
from pipeline.features.built_in import MULTIPLE
from pipeline.features.catalogue import BY_NAME, FEATURES
from pipeline.scoring.blend import blend, blended_logit
from pipeline.scoring.kinds import BESIDE, RIVER, Unpublished
from pipeline.scoring.river_inputs import INPUT_FEATURES
from pipeline.scoring.river_layer import RiverLayer

BASE: Final = "Base"
LIMITED: Final = "Limited"
ONLINE_MODEL: Final = "Online model"

_GROUPS: Final = [(text, [FEATURES.index(name) for name in text.features]) for text in REASON_TEXTS]
_OF_FEATURE: Final = np.array([[float(name == feature) for feature in FEATURES] for name in INPUT_FEATURES])
"""1 where an input of the River layer is made of a feature."""


class ScoreParts(NamedTuple):
    """The parts of n scores, in log-odds; they sum to ``logit``."""

    logit: NDArray[np.float64]
    """Shape (n,)."""
    score: NDArray[np.float64]
    """Shape (n,); the sigmoid of ``logit``."""
    base: NDArray[np.float64]
    """Shape (n,)."""
    features: NDArray[np.float64]
    """Shape (n, len(FEATURES))."""
    limited: NDArray[np.float64]
    """Log-odds that LightGBM's bound takes away; shape (n,)."""
    others: dict[str, NDArray[np.float64]]
    """Log-odds of models that are one part each, by the kind's name; shape (n,)."""


def parts_of(models: ActiveModels, features: NDArray[np.float64]) -> ScoreParts:
    """Take n scores apart.

    Args:
        models: The versions that scored them.
        features: Shape (n, len(FEATURES)), NaN for no value.
    """
    lightgbm, weights = models.lightgbm, models.policy.model_weights
    logits, contributions = log_odds(models, features), lightgbm.contributions_and_base(features)
    share = 1.0 - sum(weights)
    base, by_feature = np.zeros(len(features)), np.zeros((len(features), len(FEATURES)))
    others: dict[str, NDArray[np.float64]] = {}
    for column, (kind, model, weight) in enumerate(zip(BESIDE, models.beside.values(), weights, strict=True), 1):
        if isinstance(model, RiverLayer):
            share += weight
            base += weight * model.intercept
            by_feature += weight * (model.contributions(features) @ _OF_FEATURE)
        elif isinstance(model, Unpublished):
            share += weight  # LightGBM's log-odds as they are
        else:
            others[kind.name] = weight * logits[:, column]
    before = lightgbm.margin(features) * lightgbm.calibration.slope + lightgbm.calibration.intercept
    return ScoreParts(
        blended_logit(logits, weights),
        blend(logits, weights),
        base + share * contributions[:, -1],
        by_feature + share * contributions[:, :-1],
        share * (logits[:, 0] - before),
        others,
    )


def share_rows(parts: ScoreParts, row: int, features: NDArray[np.float64]) -> list[ShareRow]:
    """Return the parts of one score: the base, then the largest; what adds nothing is left out.

    Args:
        parts: Of n scores.
        row: Which of them.
        features: Those of the row, shape (len(FEATURES),).
    """
    facts, by_feature = Facts(features, ""), parts.features[row]
    found = [
        _group(text.subject, text.write(facts), columns, by_feature, facts)
        for text, columns in _GROUPS
        if by_feature[columns].any()
    ]
    found += [
        ShareRow(ONLINE_MODEL if kind == RIVER.name else title, "", None, None, float(parts.others[kind][row]))
        for kind, title in ((kind.name, kind.title) for kind in BESIDE)
        if kind in parts.others
    ]
    if parts.limited[row] != 0.0:
        found.append(ShareRow(LIMITED, "", None, None, float(parts.limited[row])))
    found.sort(key=lambda share: -abs(share.share))
    return [ShareRow(BASE, "", None, None, float(parts.base[row])), *found]


def _group(subject: str, worded: Any, columns: list[int], by_feature: NDArray[np.float64], facts: Facts) -> ShareRow:
    """Return the row of a reason text, with the feature that weighs most in the direction of their sum."""
    values = by_feature[columns]
    share = float(values.sum())
    name = FEATURES[columns[int(np.argmax(values if share > 0 else -values))]]
    usual = None
    if worded is not None and worded.usual is not None:
        # A multiple stands beside the value that it is a multiple of.
        name = "amount" if BY_NAME[worded.feature].unit == MULTIPLE else worded.feature
        usual = _value(worded.usual)
    return ShareRow(subject, name, _value(facts[name]), usual, share)


def _value(number: float) -> float | None:
    return float(number) if np.isfinite(number) else None
