import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.features.catalogue import FEATURES
from pipeline.scoring.blend import sigmoid
from pipeline.scoring.errors import ModelError
from pipeline.scoring.layer_inputs import LAYER_INPUTS, LOGIT_SCALE, layer_inputs
from pipeline.scoring.lessons import importance_aware_weight
from pipeline.scoring.lightgbm_model import LOGIT_BOUND
from pipeline.scoring.river_layer import RiverLayer
from pipeline.scoring.river_learner import LayerLearner
from tests.unit.model_helpers import COLUMN, example, matrix


def logits(rows: int, seed: int = 0) -> np.ndarray:
    return np.clip(np.random.default_rng(seed).normal(-4, 3, rows), -LOGIT_BOUND, LOGIT_BOUND)


def taught(lessons: int = 300) -> LayerLearner:
    learner = LayerLearner("base")
    learner.learn_examples([example(i) for i in range(lessons)])
    return learner


def test_a_new_layer_changes_nothing() -> None:
    base = logits(400)
    np.testing.assert_array_equal(RiverLayer.identity("base").logit(matrix(400), base), base)
    np.testing.assert_array_equal(LayerLearner("base").snapshot(0).logit(matrix(400), base), base)
    assert RiverLayer.identity("base").logit_weight == 1.0


def test_the_vectorised_sum_is_river_s_own_prediction() -> None:
    learner = taught()
    features, base = matrix(500, seed=9), logits(500)
    layer = learner.snapshot(300)
    inputs = layer_inputs(features, base)
    river = [
        learner.river.predict_proba_one(dict(zip(LAYER_INPUTS, row.tolist(), strict=True)))[True] for row in inputs
    ]
    np.testing.assert_allclose(sigmoid(layer.logit(features, base)), river, rtol=0, atol=1e-12)
    # The lessons moved it; otherwise the comparison would say nothing.
    assert np.abs(layer.logit(features, base) - base).max() > 0.5


def test_a_row_scores_the_same_alone_and_in_any_batch() -> None:
    layer, features, base = taught().snapshot(300), matrix(200), logits(200)
    alone = np.concatenate([layer.logit(features[i : i + 1], base[i : i + 1]) for i in range(200)])
    np.testing.assert_array_equal(layer.logit(features, base), alone)


def test_folding_in_any_batches_and_from_any_checkpoint_gives_the_same_numbers() -> None:
    examples = [example(i) for i in range(200)]
    whole = LayerLearner("base")
    whole.learn_examples(examples)
    halves = LayerLearner("base")
    halves.learn_examples(examples[:77])
    checkpoint = halves.snapshot(77).to_payload()
    resumed = LayerLearner("base")
    assert resumed.restore(checkpoint) == 77
    for one in examples[77:]:
        resumed.learn_examples([one])
    assert resumed.snapshot(200).to_payload() == whole.snapshot(200).to_payload()
    assert halves.snapshot(77).to_payload() == checkpoint


def test_scoring_and_snapshots_are_not_moved_by_later_lessons() -> None:
    learner = taught(50)
    layer = learner.snapshot(50)
    features, base = matrix(100), logits(100)
    before, payload = layer.logit(features, base), layer.to_payload()
    learner.learn_examples([example(i) for i in range(50, 100)])
    np.testing.assert_array_equal(layer.logit(features, base), before)
    assert layer.to_payload() == payload
    assert learner.snapshot(100).to_payload() != payload
    with pytest.raises(ValueError, match="read-only"):
        layer.weights[0] = 0.0


def test_scoring_does_not_teach() -> None:
    learner = taught(50)
    before = learner.snapshot(50).to_payload()
    learner.snapshot(50).logit(matrix(100), logits(100))
    assert learner.snapshot(50).to_payload() == before


def test_which_examples_are_lessons() -> None:
    learner = LayerLearner("base")
    untouched = learner.snapshot(0).weights.copy()
    counts = learner.learn_examples(
        [
            example(1, revision=1),
            example(2, lightgbm="another"),
            example(3, label_source="rule"),
            example(4, label="disputed"),
        ]
    )
    assert counts == {"learned": 0, "corrections": 1, "other_base": 1, "rule": 1, "unlabelled": 1}
    np.testing.assert_array_equal(learner.snapshot(4).weights, untouched)
    assert learner.learn_examples([example(5, label="presumed_legitimate", label_source=None)])["learned"] == 1
    assert learner.lessons.learned == 1
    assert learner.lessons.other_base == 1


def test_frauds_raise_what_they_have_in_common() -> None:
    learner = LayerLearner("base")
    attack = dict.fromkeys(FEATURES, 1.0) | {"amount": 400.0, "hour": 3.0, "card_merchant_count": 0.0}
    other = dict.fromkeys(FEATURES, 1.0) | {"amount": 20.0, "hour": 14.0, "card_merchant_count": 2.0}
    for _ in range(20):
        learner.learn(attack, -4.0, True)
        learner.learn(other, -4.0, False, weight=10.0)
    rows = np.array([[attack[name] for name in FEATURES], [other[name] for name in FEATURES]])
    layer = learner.snapshot(40)
    raised, kept = layer.logit(rows, np.array([-4.0, -4.0]))
    assert raised > -1.0
    assert kept < -3.0
    assert layer.evidence(rows, np.array([-4.0, -4.0]))[0] != ""
    parts = layer.contributions(rows, np.array([-4.0, -4.0]))
    np.testing.assert_allclose(parts.sum(axis=1) + layer.intercept, [raised, kept], rtol=0, atol=1e-12)


@pytest.mark.parametrize("weight", [1.0, 10.0, 1_000.0, 1e9])
@pytest.mark.parametrize("base", [-15.0, 0.0, 15.0])
@pytest.mark.parametrize("target", [True, False])
def test_a_heavy_lesson_never_explodes(weight: float, base: float, target: bool) -> None:
    learner = LayerLearner("base")
    features = dict(zip(FEATURES, matrix(1, seed=3)[0].tolist(), strict=True))
    row = np.array([[features[name] for name in FEATURES]])
    seen = [base]
    for _ in range(30):
        learner.learn(features, base, target, weight)
        seen.append(float(learner.snapshot(0).logit(row, np.array([base]))[0]))
    towards = np.diff(seen) if target else -np.diff(seen)
    # Towards the target with each lesson, and never so far that the next lessons would not matter.
    assert np.all(towards >= 0)
    assert np.abs(seen).max() < 40


@given(
    logit=st.floats(-60, 60),
    target=st.booleans(),
    weight=st.floats(1e-3, 1e6),
    squared_norm=st.floats(1.0, 40.0),
)
def test_the_bounded_weight_solves_its_equation(logit: float, target: bool, weight: float, squared_norm: float) -> None:
    rate = 0.1
    used = importance_aware_weight(logit, target, weight, rate, squared_norm)
    assert 0.0 < used <= weight
    z = logit if target else -logit
    step = used * rate * squared_norm / (1.0 + np.exp(z))
    reach = rate * weight * squared_norm
    if used < weight:
        assert step + np.exp(z) * np.expm1(step) == pytest.approx(reach, rel=1e-9)


@given(
    values=st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=5, max_size=5),
)
def test_inputs_are_bounded_whatever_the_features_are(values: list[float]) -> None:
    row = matrix(1)
    for name, value in zip(("amount", "hour", "card_merchant_count", "merchant_surge"), values, strict=False):
        row[0, COLUMN[name]] = value
    inputs = layer_inputs(row, np.array([values[4]]))
    assert np.isfinite(inputs).all()
    assert np.abs(inputs[:, 0]).max() <= LOGIT_BOUND / LOGIT_SCALE
    assert inputs[:, 1:].min() >= 0.0
    assert inputs[:, 1:].max() <= 1.0
    assert inputs[0, 1:-2].sum() == 2.0


def test_versions_name_configuration_and_offset() -> None:
    one, two = RiverLayer.identity("base", 7), RiverLayer.identity("another", 7)
    assert one.version.endswith("@7")
    assert one.version.split("@")[0] != two.version.split("@")[0]
    taught_more = LayerLearner("base", 7).snapshot(8)
    assert taught_more.version.split("@")[0] == one.version.split("@")[0]
    # The same weights may mean other lessons where the fold began elsewhere.
    assert LayerLearner("base").snapshot(7).version != one.version
    assert RiverLayer.identity("base", 0).version == RiverLayer.identity("base").version
    assert b"examples_start" not in RiverLayer.identity("base").payload
    resumed = LayerLearner("base")
    resumed.restore(taught_more.payload)
    assert resumed.snapshot(8).version == taught_more.version


def test_a_layer_that_does_not_fit_is_refused() -> None:
    payload = taught(10).snapshot(10).to_payload()
    with pytest.raises(ModelError, match="with other settings"):
        LayerLearner("another").restore(payload)
    with pytest.raises(ModelError, match="not a River layer"):
        RiverLayer.from_payload(b'{"weights": "many"}')
    with pytest.raises(ModelError, match="other inputs"):
        RiverLayer.from_payload(payload.replace(b"surge at merchant", b"weather"))
    with pytest.raises(ModelError, match="finite"):
        RiverLayer(RiverLayer.identity("base").config, (1.0, 2.0), 0.0, 0)
