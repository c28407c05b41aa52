"""The kernels of the agents, compiled or loaded from Numba's cache before any agent joins its group.

A transaction, its label and its decision pass through all agents, in memory and in a directory that is removed. An
agent that compiled behind its first batch would hold partitions for minutes while nobody decides them.
"""

from collections.abc import Collection, Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from agents.topology import CARD, FEEDBACK, LABEL, LEARN, SCORE
from pipeline.decision.policy import Policy
from pipeline.decision.rules import Rule, RuleSet
from pipeline.engine.cards.card_partition import CardPartition
from pipeline.engine.feedback.feedback import FeedbackPartition
from pipeline.engine.feedback.learn import LearnPartition
from pipeline.engine.partition_state.state import MemoryStore
from pipeline.engine.records.accepted_labels import accept
from pipeline.engine.records.results import Result
from pipeline.engine.scores.active_models import ActiveModels
from pipeline.engine.scores.decider import Decider
from pipeline.engine.scores.score import ScorePartition
from pipeline.features.catalogue import FEATURES
from pipeline.features.declaration import Declaration, DeclaredFeature
from pipeline.features.feature_set import FeatureSet
from pipeline.features.kernel import CardWindows, MerchantWindows
from pipeline.kafka.records.batch_records import compile_scan
from pipeline.learning.label_sources import ANY_SOURCE
from pipeline.scoring.lightgbm_model import LightGBMModel
from pipeline.scoring.river_factory import first_river, new_learner
from pipeline.settings import Settings
from pipeline.settings.kernel_options import card_options, feedback_config, label_options
from pipeline.state.segments import FileSegments
from schemas.messages import Label, Transaction
from schemas.money import RateTable
from schemas.records import Output, Record
from schemas.topics import ACCEPTED_LABELS, DECISION_FEATURES, EXAMPLES, LABELS, PROFILED, TRANSACTIONS, Topic

_encode = msgspec.json.Encoder(decimal_format="number").encode
_ORDER: Final = tuple(spec.name for spec in (LABEL, CARD, SCORE, FEEDBACK, LEARN))
"""The agents, each of which works on what those before it have written."""
_WHEN: Final = datetime(2020, 1, 1, tzinfo=UTC)
_BOUGHT: Final = 3
"""Transactions, of which the first is reported as fraud."""


def prepare_kernels(settings: Settings, rates: RateTable, directory: Path, agents: Collection[str] = _ORDER) -> None:
    """Compile what batches of these agents need, or load it.

    Args:
        settings: The worker's settings.
        rates: The rate table.
        directory: For a moment, it is made and removed.
        agents: Names of agents.
    """
    compile_scan()
    changed: dict[str, object] = {"card_partitions": 1, "merchant_partitions": 1, "topic_prefix": ""}
    # Whoever may write which label, this one is accepted.
    settings = settings.model_copy(update=changed | {"label_topics": {LABELS.name: (ANY_SOURCE,)}})
    agents = _ORDER[: max(map(_ORDER.index, agents)) + 1]
    label = Label(transaction_id="t0", card_id="c", label="fraud", source="chargeback", labelled_at=_WHEN)
    labels = _records(LABELS, [_encode(label)])
    accepted = _written(accept(labels, label_options(settings)).outputs, ACCEPTED_LABELS)
    if CARD.name not in agents:
        return
    bought = _records(TRANSACTIONS, [_transaction(number, rates.base) for number in range(_BOUGHT)])
    cards = CardPartition(card_options(settings, rates, 1), None, MemoryStore())
    # One transaction alone, and several with a label: the columns of each have a layout of their own.
    results = []
    for batch in (bought[:1], [*bought[1:], *accepted]):
        results.append(cards.process(batch, _WHEN))
        cards.commit()
    cards.close()
    if SCORE.name not in agents:
        return
    scores, decider, models = ScorePartition(), Decider(rates.base, 1, all_features=True), _models()
    profiled = _written((output for result in results for output in result.outputs), PROFILED)
    results = [decider.process([(scores, part)], models, _WHEN) for part in (profiled[:1], profiled[1:])]
    scores.commit()
    scores.close()
    if FEEDBACK.name not in agents:
        return
    features = _written((output for result in results for output in result.outputs), DECISION_FEATURES)
    segments = FileSegments(directory, sealed_bytes=1)
    feedback = FeedbackPartition(feedback_config(settings), MemoryStore(), None, segments)
    # The label finds its decision in a sealed segment.
    joined = Result()
    for batch in (features, accepted):
        joined = feedback.process(batch, _WHEN)
        feedback.commit()
    feedback.close()
    if not joined.outputs:
        raise RuntimeError("no example came of the label with which kernels are prepared")
    if LEARN.name not in agents:
        return
    learn = LearnPartition(new_learner(settings.river_classifier))
    learn.learn(_written(joined.outputs, EXAMPLES))
    learn.commit()


def prepare_windows() -> None:
    """Compile what declared windows need, whether any is declared here or not: a declaration may come while it runs."""
    tables = (DeclaredFeature(entity, "count", windows=("2d",)) for entity in ("card", "merchant"))
    features, whole = FeatureSet(Declaration(features=tuple(tables))), np.ones(1, np.int64)
    keys, counts, none = np.ones((1, 2), np.int64), np.ones(1, np.bool_), np.zeros(1, np.bool_)
    cards = CardWindows(None, features.card_plan, len(features.card_features), features.horizon_us)
    cards.profile(keys, keys, whole, whole, counts, np.ones(1), np.ones(1))
    merchants = MerchantWindows(None, features.merchant_plan, len(features.merchant_features), features.horizon_us)
    merchants.profile(
        none.view(np.uint8), keys, whole.view(np.uint64), whole, whole, counts, none, whole.astype(np.int8), whole
    )


def _transaction(number: int, currency: str) -> bytes:
    return _encode(
        Transaction(
            transaction_id=f"t{number}",
            event_time=_WHEN - timedelta(minutes=_BOUGHT - number),
            card_id="c",
            merchant_id="m",
            amount=Decimal("1.50"),
            currency=currency,
        )
    )


def _records(topic: Topic, values: Iterable[bytes]) -> list[Record]:
    at_ms = round(_WHEN.timestamp() * 1_000)
    return [Record(topic.name, 0, offset, at_ms, b"c", value) for offset, value in enumerate(values)]


def _written(outputs: Iterable[Output], topic: Topic) -> list[Record]:
    own = [output for output in outputs if output.topic is topic]
    at_ms = round(_WHEN.timestamp() * 1_000)
    return [
        Record(topic.name, 0, offset, at_ms, output.key, output.value, output.headers)
        for offset, output in enumerate(own)
    ]


def _models() -> ActiveModels:
    """Return models that alert on everything, so that explanations are compiled too."""
    tree = (
        "Tree=0\nnum_leaves=2\nnum_cat=0\nsplit_feature=0\nsplit_gain=1\nthreshold=0\ndecision_type=2\n"
        "left_child=-1\nright_child=-2\nleaf_value=-1 1\nleaf_weight=1 1\nleaf_count=1 1\ninternal_value=0\n"
        "internal_weight=2\ninternal_count=2\nis_linear=0\nshrinkage=1\n\n\n"
    )
    header = (
        f"tree\nversion=v4\nnum_class=1\nnum_tree_per_iteration=1\nlabel_index=0\nmax_feature_idx={len(FEATURES) - 1}\n"
        f"objective=binary sigmoid:1\nfeature_names={' '.join(FEATURES)}\n"
        f"feature_infos={' '.join(['none'] * len(FEATURES))}\ntree_sizes={len(tree)}\n\n"
    )
    forest = LightGBMModel(f"{header}{tree}end of trees\n")
    rule = Rule(
        code="any", owner="none", reason="None.", severity="low", action="tag", state="active",
        tree={"grammar": 1, "tree": [">", ["field", "amount"], ["number", 0.0]]},
    )  # fmt: skip
    return ActiveModels(forest, first_river(), Policy(0.0, blend=0.5, audit_rate=0.5), rules=RuleSet([rule]))
