import lightgbm
import msgspec
import numpy as np
import pytest

from pipeline.features.catalogue import FEATURES
from pipeline.scoring.blend import blend, sigmoid
from pipeline.scoring.distributions import FeatureDistribution, distributions_of
from pipeline.scoring.errors import ModelError
from pipeline.scoring.lightgbm_model import LOGIT_BOUND, Calibration, LightGBMModel
from pipeline.scoring.payload import payload_digest
from pipeline.scoring.trees import read_trees
from tests.helpers.models import matrix, small_model


def raw_text() -> str:
    text = msgspec.json.decode(small_model().to_payload())["text"]
    assert isinstance(text, str)
    return text


def test_the_logit_is_lightgbm_s_own_margin_calibrated() -> None:
    features = matrix(500, seed=4)
    margin = lightgbm.Booster(model_str=raw_text()).predict(features, raw_score=True)
    np.testing.assert_array_equal(small_model().logit(features), np.clip(0.8 * margin - 0.3, -15, 15))


def test_contributions_and_the_base_value_add_up_to_the_logit() -> None:
    features, model = matrix(40, seed=6), small_model()
    rest = model.logit(features) - model.contributions(features).sum(axis=1)
    np.testing.assert_allclose(rest, rest[0], rtol=0, atol=1e-9)
    assert model.contributions(features).shape == (40, len(FEATURES))


def test_scoring_leaves_its_input_as_it_was() -> None:
    features = matrix(20, seed=7)
    before = features.copy()
    small_model().logit(features)
    small_model().contributions(features)
    np.testing.assert_array_equal(features, before)


def test_the_logit_is_bounded() -> None:
    steep = LightGBMModel(raw_text(), Calibration(slope=1000.0))
    logits = steep.logit(matrix(200))
    assert logits.max() == LOGIT_BOUND
    assert logits.min() == -LOGIT_BOUND


def test_a_payload_gives_the_same_version_and_scores() -> None:
    model = small_model()
    again = LightGBMModel.from_payload(model.to_payload())
    assert (again.version, again.digest, again.metadata) == (model.version, model.digest, {"made": "for tests"})
    assert again.to_payload() == model.to_payload()
    assert model.digest == payload_digest(model.to_payload())
    assert model.digest.startswith(model.version)
    np.testing.assert_array_equal(again.logit(matrix(50)), model.logit(matrix(50)))


def test_a_payload_inside_a_message_keeps_its_digest() -> None:
    class Outer(msgspec.Struct):
        payload: msgspec.Raw

    outer = msgspec.json.decode(msgspec.json.encode(Outer(payload=msgspec.Raw(small_model().to_payload()))), type=Outer)
    assert LightGBMModel.from_payload(bytes(outer.payload)).digest == small_model().digest


def distributed(names: tuple[str, ...] = FEATURES) -> tuple[FeatureDistribution, ...]:
    return distributions_of(matrix(200), np.ones(200), names)


def test_distributions_of_the_training_travel_with_a_version() -> None:
    model = LightGBMModel(raw_text(), distributions=distributed())
    again = LightGBMModel.from_payload(model.to_payload())
    assert again.distributions == model.distributions == distributed()
    assert (again.version, again.trained_on) == (model.version, FEATURES)
    np.testing.assert_array_equal(again.logit(matrix(50)), LightGBMModel(raw_text()).logit(matrix(50)))


def test_a_version_without_distributions_is_what_it_was_before_there_were_any() -> None:
    content = msgspec.json.decode(small_model().to_payload())
    assert set(content) == {"kind", "kernel", "feature_names", "calibration", "metadata", "text"}
    assert small_model().distributions == ()
    assert small_model().trained_on == FEATURES


def test_trees_that_ask_for_what_they_were_not_trained_on_are_refused() -> None:
    asked = {FEATURES[feature] for tree in read_trees(raw_text(), FEATURES) for feature in tree.feature}
    fitting = tuple(name for name in FEATURES if name in asked)
    assert LightGBMModel(raw_text(), distributions=distributed(fitting)).trained_on == fitting
    with pytest.raises(ModelError, match=f"ask for {fitting[0]}, which it says they were not trained on"):
        LightGBMModel(raw_text(), distributions=distributed(fitting[1:]))


@pytest.mark.parametrize(
    "change",
    [
        {"name": "hour"},
        {"edges": [2.0, 1.0], "counts": [1.0, 1.0, 1.0, 0.0]},
        {"edges": [1.0], "counts": [1.0, 1.0]},
        {"edges": [], "counts": [-1.0, 0.0]},
    ],
)
def test_damaged_distributions_are_refused(change: dict[str, object]) -> None:
    content = msgspec.json.decode(LightGBMModel(raw_text(), distributions=distributed()).to_payload())
    assert content["distributions"][0]["name"] == "amount"
    content["distributions"][0] |= change
    with pytest.raises(ModelError, match="distributions of this version's features are damaged"):
        LightGBMModel.from_payload(msgspec.json.encode(content))


def test_distributions_have_bins_of_equal_shares_and_one_for_no_value() -> None:
    features = np.zeros((1_000, len(FEATURES)))
    amount, hour, weekday = (FEATURES.index(name) for name in ("amount", "hour", "weekday"))
    features[:, amount] = np.arange(1_000)
    features[:300, hour] = np.nan
    features[:, weekday] = np.nan
    row = {distribution.name: distribution for distribution in distributions_of(features, np.ones(1_000))}
    assert row["amount"].edges == tuple(np.arange(99.0, 999, 100))
    assert row["amount"].counts == (99.0, *[100.0] * 8, 101.0, 0.0)
    assert (row["hour"].edges, row["hour"].counts) == ((0.0,), (0.0, 700.0, 300.0))
    assert (row["weekday"].edges, row["weekday"].counts) == ((), (0.0, 1_000.0))
    # A row that stands for three is counted three times, and draws edges as three rows would.
    weight = np.where(np.arange(1_000) < 500, 3.0, 1.0)
    (weighed,) = distributions_of(features, weight, ["amount"])
    (repeated,) = distributions_of(np.repeat(features, weight.astype(int), axis=0), np.ones(2_000), ["amount"])
    assert weighed == repeated


def test_another_calibration_is_another_version() -> None:
    assert LightGBMModel(raw_text(), Calibration(slope=0.9)).version != small_model().version


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("feature_names", [*FEATURES[:-1], "phase_of_the_moon"], "other features than their payload says"),
        ("feature_names", list(FEATURES[:-1]), "other features than their payload says"),
        ("kernel", "0-00000000", "0-00000000"),
        ("kind", "policy", "policy"),
        ("calibration", {"slope": -1.0, "intercept": 0.0}, "slope"),
        ("calibration", {"slope": "steep", "intercept": 0.0}, "not a LightGBM version"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(field: str, value: object, complaint: str) -> None:
    content = msgspec.json.decode(small_model().to_payload())
    content[field] = value
    with pytest.raises(ModelError, match=complaint):
        LightGBMModel.from_payload(msgspec.json.encode(content))


def of_other_features(names: list[str]) -> LightGBMModel:
    """Return `small_model` as if it had been trained under a declaration of other features."""
    content = msgspec.json.decode(small_model().to_payload())
    content["text"] = content["text"].replace(f"feature_names={' '.join(FEATURES)}", f"feature_names={' '.join(names)}")
    content["feature_names"] = names
    return LightGBMModel.from_payload(msgspec.json.encode(content))


def test_a_model_of_another_declaration_finds_its_features_by_name() -> None:
    rows = np.random.default_rng(0).lognormal(size=(50, len(FEATURES)))
    order = [*range(1, len(FEATURES)), 0]
    other = of_other_features([FEATURES[k] for k in order])
    shifted = np.empty_like(rows)
    shifted[:, order] = rows
    assert other.logit(shifted).tolist() == small_model().logit(rows).tolist()
    assert other.contributions(shifted)[:, order].tolist() == small_model().contributions(rows).tolist()


def test_a_model_that_needs_a_feature_that_is_not_declared_is_refused() -> None:
    asked = next(iter(small_model().gain_shares))
    names = [name if name != asked else "phase_of_the_moon" for name in FEATURES]
    with pytest.raises(ModelError, match="needs phase_of_the_moon, which this declaration of features lacks"):
        of_other_features(names)


def test_trees_of_other_features_than_the_payload_says_are_refused() -> None:
    text = raw_text().replace("feature_names=amount hour", "feature_names=hour amount")
    with pytest.raises(ModelError, match="other features"):
        LightGBMModel(text)


def test_the_blend_goes_from_lightgbm_to_the_online_model() -> None:
    own, online = np.array([-3.0, 0.0, 4.0]), np.array([1.0, 1.0, 1.0])
    logits = np.stack([own, online], axis=1)
    np.testing.assert_array_equal(blend(logits, [0.0]), sigmoid(own))
    np.testing.assert_array_equal(blend(logits, [1.0]), sigmoid(online))
    np.testing.assert_allclose(blend(logits, [0.25]), sigmoid(0.75 * own + 0.25 * online), rtol=1e-15)


def test_probabilities_stay_within_0_and_1_without_overflow() -> None:
    with np.errstate(all="raise"):
        probabilities = sigmoid(np.array([-1e308, -15.0, 0.0, 15.0, 1e308]))
    assert probabilities.min() >= 0.0
    assert probabilities.max() <= 1.0
    assert np.all(np.diff(probabilities) > 0)
