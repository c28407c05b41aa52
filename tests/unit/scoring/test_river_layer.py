import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.features.catalogue import FEATURES, KERNEL_VERSION
from pipeline.scoring.blend import sigmoid
from pipeline.scoring.errors import ModelError
from pipeline.scoring.lightgbm_model import LOGIT_BOUND
from pipeline.scoring.river_inputs import INPUTS, LOGIT, OWN, SOURCE_COLUMNS, SOURCES, river_inputs
from pipeline.scoring.river_layer import INPUT_BOUND, RiverLayer, Scale
from pipeline.scoring.river_learner import LEAST_WEIGHT, LayerLearner
from pipeline.scoring.training_updates import MOST_UNDONE, importance_aware_weight
from schemas.messages import Example
from tests.helpers.models import COLUMN, example, matrix


def logits(rows: int, seed: int = 0) -> np.ndarray:
    return np.clip(np.random.default_rng(seed).normal(-4, 3, rows), -LOGIT_BOUND, LOGIT_BOUND)


def trained(count: int = 300) -> LayerLearner:
    learner = LayerLearner()
    learner.learn_examples([example(i) for i in range(count)])
    return learner


def test_a_new_layer_changes_nothing() -> None:
    base = logits(400)
    np.testing.assert_array_equal(RiverLayer.identity().logit(matrix(400), base), base)
    np.testing.assert_array_equal(LayerLearner().snapshot(0).logit(matrix(400), base), base)


def test_the_compiled_sum_is_river_s_own_prediction() -> None:
    learner = trained()
    features, base = matrix(500, seed=9), logits(500)
    layer = learner.snapshot(300)
    deviations = np.sqrt(np.array(layer.scale.squares) / layer.scale.weight)
    inputs = (river_inputs(features[:, SOURCE_COLUMNS]) - layer.scale.means) / np.where(deviations > 0, deviations, 1)
    inputs = np.clip(inputs, -INPUT_BOUND, INPUT_BOUND)
    classifier = learner._regression.river
    river = [
        classifier.predict_proba_one({**dict(zip(INPUTS, row.tolist(), strict=True)), LOGIT: logit})[True]
        for row, logit in zip(inputs, base.tolist(), strict=True)
    ]
    np.testing.assert_allclose(sigmoid(layer.logit(features, base)), river, rtol=0, atol=1e-12)
    # The examples moved it; otherwise the comparison would say nothing.
    assert np.abs(layer.logit(features, base) - base).max() > 0.1


def test_the_scale_is_that_of_the_weighted_inputs() -> None:
    examples = [example(i) for i in range(200)]
    scale = trained(200).snapshot(200).scale
    rows = np.array([[example.features[name] for name in SOURCES] for example in examples], float)
    inputs, weights = river_inputs(rows), np.array([example.weight for example in examples])
    means = np.average(inputs, axis=0, weights=weights)
    assert scale.weight == weights.sum()
    np.testing.assert_allclose(scale.means, means, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(scale.squares, weights @ (inputs - means) ** 2, rtol=1e-9, atol=1e-9)


def test_nothing_is_learned_before_there_is_a_scale() -> None:
    few = [example(i, label="legitimate", weight=10.0) for i in range(int(LEAST_WEIGHT / 10))]
    learner = LayerLearner()
    learner.learn_examples(few)
    base = logits(50)
    np.testing.assert_array_equal(learner.snapshot(len(few)).logit(matrix(50), base), base)
    learner.learn_examples([example(len(few), label="fraud")])
    assert not np.array_equal(learner.snapshot(len(few) + 1).logit(matrix(50), base), base)


def test_a_row_scores_the_same_alone_and_in_any_batch() -> None:
    layer, features, base = trained().snapshot(300), matrix(200), logits(200)
    alone = np.concatenate([layer.logit(features[i : i + 1], base[i : i + 1]) for i in range(200)])
    np.testing.assert_array_equal(layer.logit(features, base), alone)


def test_scoring_and_snapshots_are_not_moved_by_later_examples() -> None:
    learner = trained(50)
    layer = learner.snapshot(50)
    features, base = matrix(100), logits(100)
    before, payload = layer.logit(features, base), layer.to_payload()
    learner.learn_examples([example(i) for i in range(50, 100)])
    np.testing.assert_array_equal(layer.logit(features, base), before)
    assert layer.to_payload() == payload
    assert learner.snapshot(100).to_payload() != payload
    with pytest.raises(ValueError, match="read-only"):
        layer.weights[0] = 0.0


def test_which_examples_are_learned() -> None:
    learner = LayerLearner()
    untouched = learner.snapshot(0).weights.copy()
    counts = learner.learn_examples(
        [
            example(1, online_weight=0.0, revision=1),
            example(2, kernel="0-another"),
            example(3, label_source="rule"),
            example(4, label="disputed"),
            example(5, held=True),
            example(6, label="withdrawn", online_weight=0.0, revision=1),
        ]
    )
    nothing = {"learned": 0, "corrections": 0, "allowed_for": 2, "held": 1}
    assert counts == {**nothing, "other_kernel": 1, "rule": 1, "unlabelled": 1}
    np.testing.assert_array_equal(learner.snapshot(4).weights, untouched)
    assert learner.learn_examples([example(5, label="presumed_legitimate", label_source=None)])["learned"] == 1
    assert learner.updates.learned == 1
    assert learner.updates.other_kernel == 1
    assert learner.learn_examples([example(6, lightgbm="another")])["learned"] == 1


def scaled() -> LayerLearner:
    """A learner that has a scale, and has learned nothing."""
    learner = LayerLearner()
    learner.learn_examples([example(i, label="legitimate", weight=10.0) for i in range(int(LEAST_WEIGHT / 10))])
    return learner


def test_frauds_raise_what_they_have_in_common() -> None:
    learner = scaled()
    attack = dict.fromkeys(FEATURES, 1.0) | {"amount": 400.0, "hour": 3.0, "card_merchant_count": 0.0}
    other = dict.fromkeys(FEATURES, 1.0) | {"amount": 20.0, "hour": 14.0, "card_merchant_count": 2.0}
    for number in range(600):
        learner.learn_examples(
            [
                example(number, label="fraud", features=attack, logit=-4.0, weight=1.0),
                example(number, label="legitimate", features=other, logit=-4.0, weight=10.0),
            ]
        )
    rows = np.array([[attack[name] for name in FEATURES], [other[name] for name in FEATURES]])
    layer = learner.snapshot(40)
    raised, kept = layer.logit(rows, np.array([-4.0, -4.0]))
    assert raised > -1.0
    assert kept < -3.0
    assert layer.evidence(rows, np.array([-4.0, -4.0]))[0] != ""
    parts = layer.contributions(rows)
    np.testing.assert_allclose(-4.0 + parts.sum(axis=1) + layer.intercept, [raised, kept], rtol=0, atol=1e-12)


@pytest.mark.parametrize("weight", [1.0, 10.0, 1_000.0, 1e9])
@pytest.mark.parametrize("base", [-15.0, 0.0, 15.0])
@pytest.mark.parametrize("target", ["fraud", "legitimate"])
def test_a_heavy_example_never_explodes(weight: float, base: float, target: str) -> None:
    learner = scaled()
    features = dict(zip(FEATURES, matrix(1, seed=3)[0].tolist(), strict=True))
    row = np.array([[features[name] for name in FEATURES]])
    seen = [base]
    for number in range(30):
        learner.learn_examples([example(number, label=target, features=features, logit=base, weight=weight)])
        seen.append(float(learner.snapshot(0).logit(row, np.array([base]))[0]))
    # Never so far that the next ones would not matter.
    assert np.abs(seen).max() < 40
    assert seen[1] >= base if target == "fraud" else seen[1] <= base


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
    logit=st.floats(-20, 20),
    target=st.booleans(),
    weight=st.floats(1e-3, 100.0),
    squared_norm=st.floats(1.0, 300.0),
)
def test_rollbacking_a_step_leads_back_to_where_it_began(
    logit: float, target: bool, weight: float, squared_norm: float
) -> None:
    rate, sign = 0.0001, 1.0 if target else -1.0

    def moved(start: float, weight: float) -> float:
        used = importance_aware_weight(start, target, weight, rate, squared_norm)
        return start + sign * used * rate * squared_norm / (1.0 + np.exp(sign * start))

    assert moved(moved(logit, weight), -weight) == pytest.approx(logit, abs=1e-9)


@pytest.mark.parametrize("label", ["fraud", "legitimate"])
def test_a_correction_undoes_the_former_label_and_learns_the_new_one(label: str) -> None:
    other = "legitimate" if label == "fraud" else "fraud"
    row = dict(zip(FEATURES, matrix(1, seed=3)[0].tolist(), strict=True))
    at, base = np.array([[row[name] for name in FEATURES]]), np.array([-1.0])

    def learned(*examples: Example) -> float:
        learner = scaled()
        learner.learn_examples(examples)
        return float(learner.snapshot(0).logit(at, base)[0])

    first = example(1, label=label, features=row, logit=-1.0, weight=3.0)
    undone = {"former": label, "former_weight": 3.0, "features": row, "logit": -1.0, "revision": 1}
    withdrawn = learned(first, example(1, label="withdrawn", online_weight=0.0, **undone))
    corrected = learned(first, example(1, label=other, online_weight=1.0, **undone))
    up = 1.0 if label == "fraud" else -1.0
    assert up * learned(first) > up * learned()
    # The scale has taken the transaction in meanwhile, so that it is not undone to the last bit.
    assert withdrawn == pytest.approx(learned(), abs=0.1 * abs(learned(first) - learned()))
    assert up * corrected < up * withdrawn


def test_rollbacking_is_bounded_whatever_was_learned_since() -> None:
    learner = scaled()
    before = learner.snapshot(0)
    learner.learn_examples([example(1, label="withdrawn", online_weight=0.0, former="fraud", former_weight=1e9)])
    features, base = matrix(1, seed=1), np.zeros(1)
    assert abs(learner.snapshot(0).logit(features, base) - before.logit(features, base))[0] <= MOST_UNDONE + 1e-9


@given(values=st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=len(SOURCES), max_size=len(SOURCES)))
def test_inputs_are_bounded_whatever_the_features_are(values: list[float]) -> None:
    inputs = river_inputs(np.array([values]))
    assert np.isfinite(inputs).all()
    own = [INPUTS.index(name) for name in OWN]
    assert np.delete(inputs, own, axis=1).min() >= 0.0
    assert np.abs(inputs).max() < 50.0
    # Of the bands of amounts, and of those of hours, one each.
    bands = INPUTS.index("amount below 10"), INPUTS.index("hour from 20") + 1
    assert inputs[0, slice(*bands)].sum() == 2.0


def test_inputs_say_what_the_features_are() -> None:
    row = matrix(1)
    row[0, SOURCE_COLUMNS] = 0.0
    for name, value in (("amount", 99.0), ("hour", 23.5), ("merchant_unreported_since_fraud", np.nan)):
        row[0, COLUMN[name]] = value
    found = dict(zip(INPUTS, river_inputs(row[:, SOURCE_COLUMNS])[0].tolist(), strict=True))
    assert found["amount"] == np.log1p(99.0)
    assert {name for name, value in found.items() if value == 1.0} == {
        "no merchant_unreported_since_fraud",
        "card_merchant_count is 0",
        "amount 30 to 100",
        "hour from 20",
    }


def test_versions_name_configuration_and_offset() -> None:
    snapshot, more = LayerLearner().snapshot(7), LayerLearner().snapshot(8)
    assert snapshot.version.endswith("@7")
    assert more.version == snapshot.version.replace("@7", "@8")
    assert RiverLayer.identity().version.endswith("@0")
    resumed = LayerLearner()
    resumed.restore(more.payload)
    assert resumed.snapshot(8).version == more.version


def test_a_layer_of_another_declaration_keeps_its_weights_by_name() -> None:
    layer = trained(10).snapshot(10)
    content = msgspec.json.decode(layer.to_payload())
    order = [*range(1, len(INPUTS)), 0]
    content["config"]["inputs"] = [*(INPUTS[k] for k in order), "weather"]
    content["weights"] = [*(content["weights"][k] for k in order), 5.0]
    scale = content["scale"]
    scale["means"], scale["squares"] = ([*(scale[of][k] for k in order), 1.0] for of in ("means", "squares"))
    other = RiverLayer.from_payload(msgspec.json.encode(content))
    rows = np.random.default_rng(0).lognormal(size=(20, len(FEATURES)))
    assert other.logit(rows, np.zeros(20)).tolist() == layer.logit(rows, np.zeros(20)).tolist()
    assert other.version != layer.version


def test_an_input_that_is_new_weighs_nothing_and_has_deviation_one() -> None:
    content = msgspec.json.decode(trained(10).snapshot(10).to_payload())
    new = INPUTS.index("card_count_1d")
    for values in (
        content["config"]["inputs"],
        content["weights"],
        *(content["scale"][of] for of in ("means", "squares")),
    ):
        del values[new]
    layer = RiverLayer.from_payload(msgspec.json.encode(content))
    assert layer.weights[new] == layer.scale.means[new] == 0.0
    assert layer.scale.squares[new] == layer.scale.weight > 0


def test_a_layer_that_does_not_fit_is_refused() -> None:
    payload = trained(10).snapshot(10).to_payload()
    with pytest.raises(ModelError, match="other inputs"):
        LayerLearner().restore(payload.replace(b'"learning_rate":0.001', b'"learning_rate":0.002'))
    with pytest.raises(ModelError, match="not a River layer"):
        RiverLayer.from_payload(b'{"weights": "many"}')
    with pytest.raises(ModelError, match="other inputs"):
        RiverLayer.from_payload(payload.replace(KERNEL_VERSION.encode(), b"0-00000000"))
    with pytest.raises(ModelError, match="finite"):
        RiverLayer(RiverLayer.identity().config, (1.0, 2.0), 0.0, Scale(), 0)
