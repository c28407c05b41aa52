"""A replay over columns decides what the live kernels decide, to the last bit, however it is cut."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest

from pipeline.backtest import Decisions, Learning, Order, replay
from pipeline.decision.policy import Policy
from pipeline.decision.rules import RuleSet
from pipeline.engine.cards.card_options import CardOptions
from pipeline.engine.scores.active_models import ActiveModels
from pipeline.features.catalogue import FEATURES
from pipeline.learning import surges
from pipeline.scoring.river_factory import first_river
from pipeline.scoring.river_inputs import INPUTS, SOURCES
from pipeline.scoring.river_layer import LayerConfig, RiverLayer, Scale
from pipeline.scoring.river_learner import LayerLearner
from schemas.messages import Example, FeedbackConfig, LogPosition, Reason
from tests.contract.records import RATES
from tests.helpers.champion import rule
from tests.helpers.histories import DAY, HOUR, START_US, Happening, busy_history, cut, labels, play, transactions
from tests.helpers.lists import definition, entry, lists_of
from tests.helpers.live import Live
from tests.helpers.models import small_model

CHUNKS = (1, 7, 1_000, None)


def models() -> ActiveModels:
    """A layer that has learned something, and a policy that alerts for every reason."""
    base = small_model()
    weights = tuple(np.random.default_rng(5).normal(0.3, 0.2, len(INPUTS)).tolist())
    scale = Scale(weight=100.0, means=(1.0,) * len(INPUTS), squares=(200.0,) * len(INPUTS))
    river = RiverLayer(LayerConfig(), weights, -0.2, scale, 17)
    rules = RuleSet(
        [
            rule("busy", "card_count_1h > 0"),
            rule("abroad", "country <> 'DE' and river > 0 and score between 0 and 1 and amount > 10", state="shadow"),
            rule("device", "device_id like 'd%1' or merchant_id = 'm1' or mcc = '5401'", action="tag"),
            rule("odd", "lower(country) > 'e' or country < transaction_type", state="shadow"),
            rule("draft", "amount > 0", state="draft"),
            rule("listed", "country in list('home') and not merchant_id = 'm1'", action="tag"),
        ]
    )
    lists = lists_of(
        [
            definition("home"),
            definition("stolen", "block", "card_id"),
            definition("quiet", "suppress", "rule"),
            definition("good", "allow", "merchant_id"),
        ],
        [
            entry("home", "DE"),
            entry("stolen", "c1"),
            entry("quiet", "busy", START_US + 10 * DAY),
            entry("good", "m1"),
            entry("good", "m2", 1),
        ],
    )
    policy = Policy(0.5, blend=0.7, audit_rate=0.05, lightgbm_version=base.version)
    return ActiveModels(base, river, policy, rules=rules, lists=lists)


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
                "transaction_id": decision.transaction_id,
                "card_id": decision.card_id,
                "merchant_id": decision.merchant_id,
                "event_time": decision.event_time,
                "currency": decision.currency,
                "amount_base": decision.amount_base,
                "transaction_type": decision.transaction_type,
                "score": decision.score,
                "lightgbm": decision.model_scores.lightgbm,
                "river": decision.model_scores.river,
                "logit": decision.logit,
                "river_logit": decision.river_logit,
                "action": decision.action,
                "selection": decision.selection,
                "selection_probability": decision.selection_probability,
                "threshold": decision.threshold,
                "case_id": decision.case_id,
                "case_sequence": decision.case_sequence,
                "lightgbm_version": decision.versions.lightgbm,
                "river_version": decision.versions.river,
                "policy_version": decision.versions.policy,
                "rates_version": decision.versions.rates,
                "rules_version": decision.versions.rules,
                "rule_hits": decision.rule_hits or (),
                "shadow_hits": decision.shadow_hits or (),
                "lists_version": decision.versions.lists,
                "list_hits": decision.list_hits or (),
                "overruled_by": [*(decision.overruled or {})],
                **{f"feature_{name}": decision.features[name] for name in FEATURES},
            }
            for decision in live.decisions
        ]
    ).astype({f"feature_{name}": float for name in FEATURES})


def assert_same(parts: list[Decisions], live: Live) -> None:
    expected, found = live_frame(live), frame(parts)
    for name in ("rule_hits", "shadow_hits", "list_hits", "overruled_by"):
        found[name] = [*map(tuple, found[name])]
        expected[name] = [*map(tuple, expected[name])]
    assert len(found) == len(expected) > 0
    for name in expected:
        left, right = found[name], expected[name]
        if left.dtype == np.float64:
            # To the last bit, NaN at the same places.
            np.testing.assert_array_equal(left.to_numpy(), right.to_numpy(float), err_msg=name)
        else:
            pairs = zip(left.tolist(), right.tolist(), strict=True)
            assert [pair for pair in pairs if pair[0] != pair[1] and not all(map(pd.isna, pair))] == [], name


def dead_letters(parts: list[Decisions]) -> list[tuple[str, int, str, str]]:
    return sorted(
        (f"{reject.kind}s", reject.row, reject.code, reject.text) for part in parts for reject in part.rejects
    )


@pytest.mark.parametrize(("seed", "partitions"), [(0, 3), (1, 1)])
def test_decisions_are_those_of_the_live_kernels(seed: int, partitions: int) -> None:
    history, card = busy_history(seed), options(partitions)
    live = play(history, Live(models(), card))
    parts = run(history, card, 100)
    assert_same(parts, live)
    for name in ("rule_hits", "shadow_hits", "list_hits", "overruled_by"):
        assert len({tuple(codes) for codes in frame(parts)[name]}) > 2, name
    assert dead_letters(parts) == sorted(live.dead_letters)
    assert sum(part.duplicates for part in parts) == live.counts["duplicate", ""] > 0
    outcomes = sum((part.label_outcomes for part in parts), Counter[str]())
    assert outcomes == {name: count for (what, name), count in live.counts.items() if what == "label"}
    # The horizon was passed: some identities were decided twice.
    assert frame(parts).duplicated(["card_id", "transaction_id"]).any()
    assert set(frame(parts)["selection"].dropna()) == {"score", "rule", "audit", "list"}


def in_base_currency(reason: Reason) -> Reason:
    """Without the amount in the transaction's own currency, which a backtest does not hold."""
    return msgspec.structs.replace(reason, sentence=re.sub(r" \(\d[\d.]* [A-Z]{3}\)", "", reason.sentence))


def test_reasons_are_those_of_the_alerts() -> None:
    history, card = busy_history(3, 200), options()
    live = play(history, Live(models(), card))
    parts = run(history, card, 50)
    served = [[in_base_currency(reason) for reason in alert.reasons] for alert in live.alerts]
    assert [why for part in parts for why in part.reasons()] == served != []
    (part,) = run(history, card)
    assert part.reasons(np.array([1])) != []


class Pupil(LayerLearner):
    """A learner that keeps the examples that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.examples: list[Example] = []

    def learn_examples(self, examples: Iterable[Example]) -> Mapping[str, int]:
        examples = list(examples)
        self.examples += examples
        return super().learn_examples(examples)


def comparable(example: Example) -> Example:
    """Without the place in a log that a replay has not; with the features that the layer learns from."""
    features = {name: example.features[name] for name in SOURCES}
    return msgspec.structs.replace(example, log=LogPosition(partition=0, offset=0), features=features)


def assert_taught(
    history: list[Happening], card: CardOptions, feedback: FeedbackConfig, every_us: int, *chunks: int | None
) -> Live:
    """That a replay by chunks decides, tells and counts what the live kernels do, of which it returns the run."""
    base = small_model()
    start = ActiveModels(base, first_river(), models().policy, rules=models().rules)
    live = play(history, Live(start, card, feedback), every_us)
    for rows in chunks:
        pupil = Pupil()
        parts = run(history, card, rows, scored_by=start, learning=Learning(feedback, every_us, pupil))
        if live.decisions:
            assert_same(parts, live)
        assert sum(map(len, parts)) == len(live.decisions)
        assert dead_letters(parts) == sorted(live.dead_letters)
        assert list(map(comparable, pupil.examples)) == list(map(comparable, live.examples))
        outcomes = sum((part.feedback for part in parts), Counter[tuple[str, str]]())
        refused = {("label", "invalid"), ("label", "rerouted")}
        assert outcomes == {name: count for name, count in live.feedback_counts.items() if name not in refused}
    return live


@pytest.mark.parametrize(("seed", "partitions"), [(0, 3), (1, 1)])
def test_the_online_model_learns_what_the_agents_would_teach_it(seed: int, partitions: int) -> None:
    history, card = busy_history(seed, 600), options(partitions)
    feedback = FeedbackConfig(label_horizon_us=8 * DAY, maturity_us=3 * DAY, negative_sample_rate=0.4)
    live = assert_taught(history, card, feedback, 36 * HOUR, 7, None)
    assert len({decision.versions.river for decision in live.decisions}) > 3
    assert {example.label for example in live.examples} >= {"fraud", "legitimate", "presumed_legitimate"}
    assert max(example.revision for example in live.examples) > 0
    assert live.feedback_counts["label", "unknown_transaction"] > 0


def test_a_replay_holds_the_labels_that_the_agents_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("LEAST_HISTORY_HOURS", 1), ("LEAST_LIMIT", 1), ("MULTIPLE", 1)):
        monkeypatch.setattr(surges, name, value)
    feedback = FeedbackConfig(
        label_horizon_us=8 * DAY, maturity_us=3 * DAY, negative_sample_rate=0.4, reported_share=0.75
    )
    live = assert_taught(busy_history(0, 600), options(3), feedback, 36 * HOUR, 7)
    held = [example.held for example in live.examples if example.label_source is not None]
    assert 0 < sum(held) < len(held)
    assert {example.former for example in live.examples} >= {None, "fraud"}
    assert any(example.online_weight == 1 / 0.75 for example in live.examples)
