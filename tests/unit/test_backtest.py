"""A replay over columns decides what the live kernels decide, to the last bit, however it is cut."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.backtest import Decisions, Order, replay
from pipeline.decision.policy import Policy, Rule
from pipeline.engine.card import CardOptions
from pipeline.engine.models import ActiveModels
from pipeline.features.catalogue import FEATURES
from pipeline.scoring.layer_inputs import LAYER_INPUTS
from pipeline.scoring.river_layer import LayerConfig, RiverLayer
from tests.contract.records import RATES
from tests.helpers.histories import DAY, Happening, busy_history, cut, labels, play, transactions
from tests.helpers.live import Live
from tests.unit.model_helpers import small_model

CHUNKS = (1, 7, 1_000, None)


def models() -> ActiveModels:
    """A layer that has learned something, and a policy that alerts for every reason."""
    base = small_model()
    weights = tuple(np.random.default_rng(5).normal(0.3, 0.2, len(LAYER_INPUTS)).tolist())
    river = RiverLayer(LayerConfig(lightgbm_version=base.version), weights, -0.2, 17)
    rules = (Rule(code="foreign", feature="card_count_1h", op=">", value=3, sentence="Many within the hour."),)
    policy = Policy(0.3, blend=0.7, audit_rate=0.05, rules=rules, lightgbm_version=base.version)
    return ActiveModels(base, river, policy)


def options(partitions: int = 1, dedup: int = 5 * DAY, label: int = 8 * DAY) -> CardOptions:
    return CardOptions(RATES, 300_000_000, dedup, label, partitions)


def run(
    history: list[Happening],
    card: CardOptions,
    rows: int | None = None,
    *,
    scored_by: ActiveModels | None = None,
    **more: Any,
) -> list[Decisions]:
    tables = cut(transactions(history), rows), cut(labels(history), rows)
    return list(replay(scored_by or models(), *tables, options=card, order=Order.RECORDED, **more))


def frame(parts: list[Decisions]) -> pd.DataFrame:
    return pd.concat([part.frame(features=True) for part in parts], ignore_index=True)


def live_frame(live: Live) -> pd.DataFrame:
    """Decisions of the live kernels in the same columns, as far as they have them."""
    return pd.DataFrame(
        [
            {
                "transaction_id": one.transaction_id,
                "card_id": one.card_id,
                "merchant_id": one.merchant_id,
                "event_time": one.event_time,
                "currency": one.currency,
                "amount_base": one.amount_base,
                "transaction_type": one.transaction_type,
                "score": one.score,
                "lightgbm": one.model_scores.lightgbm,
                "river": one.model_scores.river,
                "logit": one.logit,
                "action": one.action,
                "selection": one.selection,
                "selection_probability": one.selection_probability,
                "threshold": one.threshold,
                "case_id": one.case_id,
                "case_sequence": one.case_sequence,
                "lightgbm_version": one.versions.lightgbm,
                "river_version": one.versions.river,
                "policy_version": one.versions.policy,
                "rates_version": one.versions.rates,
                **{f"feature_{name}": one.features[name] for name in FEATURES},
            }
            for one in live.decisions
        ]
    ).astype({f"feature_{name}": float for name in FEATURES})


def assert_same(parts: list[Decisions], live: Live) -> None:
    expected, found = live_frame(live), frame(parts)
    assert len(found) == len(expected) > 0
    for name in expected:
        left, right = found[name], expected[name]
        if left.dtype == np.float64:
            # To the last bit, NaN at the same places.
            np.testing.assert_array_equal(left.to_numpy(), right.to_numpy(float), err_msg=name)
        else:
            pairs = zip(left.tolist(), right.tolist(), strict=True)
            assert [pair for pair in pairs if pair[0] != pair[1] and not all(map(pd.isna, pair))] == [], name


def told(parts: list[Decisions]) -> list[tuple[str, int, str, str]]:
    return sorted((f"{one.kind}s", one.row, one.code, one.text) for part in parts for one in part.rejects)


@pytest.mark.parametrize("partitions", [1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_decisions_are_those_of_the_live_kernels(seed: int, partitions: int) -> None:
    history, card = busy_history(seed), options(partitions)
    live = play(history, Live(models(), card))
    parts = run(history, card, 100)
    assert_same(parts, live)
    assert told(parts) == sorted(live.dead_letters)
    assert sum(part.duplicates for part in parts) == live.counts["duplicate", ""] > 0
    assert set(frame(parts)["selection"].dropna()) == {"score", "rule", "audit"}
