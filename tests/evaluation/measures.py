"""How well frauds were found, and how long decisions took."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.training.score_metrics import auc_roc, average_precision, card_precision
from schemas.times import US_PER_DAY
from tests.evaluation.recorded import Decisions, Identity

TOP_CARDS = 100
PERCENTILES = (50.0, 95.0, 99.0, 99.9)


def detection(decisions: Decisions, frauds: set[Identity], from_us: int, to_us: int) -> dict[str, Any]:
    """Measures over the decisions with ``from_us`` <= event time < ``to_us``, by LightGBM alone and by the blend."""
    rows = np.flatnonzero((decisions.event_time_us >= from_us) & (decisions.event_time_us < to_us))
    fraud = np.array([decisions.identity[row] in frauds for row in rows], np.bool_)
    cards = {card: number for number, card in enumerate(sorted({card for card, _ in decisions.identity}))}
    card = np.array([cards[decisions.identity[row][0]] for row in rows], np.int64)
    times = decisions.event_time_us[rows]
    weight = np.ones(len(rows))
    alert = decisions.alert[rows]
    days = (to_us - from_us) / US_PER_DAY

    def figures(score: NDArray[np.float64]) -> dict[str, float | None]:
        return {
            "average_precision": average_precision(fraud, score, weight),
            "auc_roc": auc_roc(fraud, score, weight),
            f"card_precision_{TOP_CARDS}": card_precision(fraud, score, times, card, TOP_CARDS),
        }

    return {
        "transactions": len(rows),
        "frauds": int(fraud.sum()),
        "lightgbm": figures(decisions.lightgbm[rows]),
        "blend": figures(decisions.score[rows]),
        "alerts_per_day": float(alert.sum() / days),
        "alert_precision": float(fraud[alert].mean()) if alert.any() else None,
        "alert_recall": float(alert[fraud].mean()) if fraud.any() else None,
    }


def latency_ms(decisions: Decisions) -> dict[str, float]:
    """Percentiles from the card agent's batch to the decision, in milliseconds."""
    if not len(decisions.latency_s):
        return {}
    values = np.percentile(decisions.latency_s, PERCENTILES) * 1_000.0
    return {f"p{percentile:g}": round(float(value), 1) for percentile, value in zip(PERCENTILES, values, strict=True)}
