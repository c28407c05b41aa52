"""Results of backtests that were never run: a few days of a few cards, decided by chance."""

from typing import Any

import numpy as np
import pandas as pd

from pipeline.backtest.metrics.drift import ModelDrift
from pipeline.backtest.runner.result import BacktestResult, Variant
from pipeline.features.catalogue import FEATURES
from pipeline.scoring.distributions import BinCounter, distributions_of

DAY_US = 86_400_000_000
FROM_US = 20_000 * DAY_US
DAYS = 6
HOSTILE = '<script src="https://example.org/x.js">alert(1)</script> & "quotes"'
"""A name that a page must not take for markup."""
DRIFTED = ("amount", "hour", "card_count_1h")


def result(
    seed: int = 0, rows: int = 600, variants: int = 1, fraud_rate: float = 0.1, labelled: float = 0.4, **changes: Any
) -> BacktestResult:
    """``labelled`` is the share of the legitimate transactions that have a label."""
    rng = np.random.default_rng(seed)
    times = np.sort(rng.integers(FROM_US, FROM_US + DAYS * DAY_US, rows))
    fraud = rng.random(rows) < fraud_rate
    base = pd.DataFrame(
        {
            "transaction_id": [f"t{number}" for number in range(rows)],
            "card_id": [f"c{number}" for number in rng.integers(0, 60, rows)],
            "merchant_id": [f"m{number}" for number in rng.integers(0, 9, rows)],
            "event_time": pd.to_datetime(times, unit="us", utc=True),
            "amount_base": np.round(rng.gamma(2.0, 60.0, rows), 2),
        }
    )
    for name in ("transaction_id", "card_id", "merchant_id"):
        base[name] = base[name].astype("string[pyarrow]")
    known = fraud | (rng.random(rows) < labelled)
    labels = pd.DataFrame(
        {
            "transaction_id": base["transaction_id"],
            "card_id": base["card_id"],
            "label": np.where(fraud, "fraud", "legitimate"),
            "source": np.where(fraud, "chargeback", "analyst"),
            "labelled_at": base["event_time"] + pd.Timedelta(days=2),
            "fraud_type": np.where(fraud, rng.choice(["amount", "card"], rows), None),
        }
    )[known]
    columns = [FEATURES.index(name) for name in DRIFTED]
    reference, current = np.zeros((400, len(FEATURES))), np.zeros((300, len(FEATURES)))
    reference[:, columns], current[:, columns] = rng.normal(size=(400, 3)), rng.normal([0, 0, 2.0], size=(300, 3))
    before = distributions_of(reference, np.ones(400), DRIFTED)
    counter = BinCounter.like(before)
    counter.add(current)
    of_variants = [_variant(rng, f"variant {number}", base, fraud) for number in range(variants)]
    given: dict[str, Any] = {
        "variants": of_variants,
        "labels": labels,
        "from_us": FROM_US,
        "to_us": FROM_US + DAYS * DAY_US,
        "warm_up_from_us": FROM_US - 30 * DAY_US,
        "base_currency": "EUR",
        "parameters": {"source": "history.parquet", "order": "event-time"},
        "counts": {"duplicates": 3},
        "drift": [
            ModelDrift("0123456789ab", tuple(variant.name for variant in of_variants), before, counter.distributions())
        ],
    }
    return BacktestResult(**(given | changes))


def _variant(rng: np.random.Generator, name: str, base: pd.DataFrame, fraud: np.ndarray) -> Variant:
    logit = rng.normal(-3.0, 1.5, len(base)) + 3.0 * fraud
    score = np.round(1 / (1 + np.exp(-logit)), 3)
    rule = rng.random(len(base)) < 0.01
    alert = (score >= 0.3) | rule
    decisions = base.assign(
        score=score,
        action=pd.Categorical(np.where(alert, "alert", "allow")),
        selection=pd.Categorical(np.where(score >= 0.3, "score", np.where(rule, "rule", None))),
    )
    codes = ["AMOUNT_HIGH", "CARD_BURST", "foreign"]
    reasons = pd.DataFrame({"code": rng.choice(codes, 90, p=[0.6, 0.3, 0.1]), "contribution": rng.gamma(2.0, 1.0, 90)})
    return Variant(name, decisions, {"lightgbm": "0123456789ab"}, 0.3, {"budget": 60}, reasons, 60)
