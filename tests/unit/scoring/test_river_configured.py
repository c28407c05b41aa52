import numpy as np
import pytest
from river import linear_model, preprocessing

from pipeline.features.catalogue import FEATURES
from pipeline.models.registry import Registry, RegistryError
from pipeline.scoring.configured_river import ConfiguredRiverLearner, ConfiguredRiverModel, build_classifier
from pipeline.scoring.errors import ModelError
from pipeline.scoring.river_factory import first_river, load_river, resume_learner
from pipeline.scoring.river_inputs import CLASSIFIER_INPUTS, SOURCES
from pipeline.scoring.river_layer import RiverLayer
from tests.helpers.models import example, matrix

BAYES = "river.naive_bayes.GaussianNB"
SCALED = "tests.unit.scoring.test_river_configured.scaled_regression"


def scaled_regression() -> object:
    return preprocessing.StandardScaler() | linear_model.LogisticRegression()


def no_file(name: str, digest: str) -> bytes:
    raise AssertionError(f"{name} {digest} was read")


@pytest.mark.parametrize("classifier", [BAYES, SCALED, "river.tree.HoeffdingTreeClassifier"])
def test_a_classifier_by_its_path_learns_travels_and_scores(classifier: str, tmp_path) -> None:
    registry = Registry(tmp_path)
    learner = ConfiguredRiverLearner(classifier)
    assert learner.learn_examples([example(i) for i in range(60)])["learned"] == 60
    model = learner.snapshot(60)
    registry.save_file(model.file_name, model.state)
    loaded = load_river(model.to_payload(), classifier, registry.read_file)
    features, base = matrix(30), np.full(30, -3.0)
    np.testing.assert_array_equal(loaded.logit(features, base), model.logit(features, base))
    assert loaded.version == model.version
    assert np.isfinite(model.logit(features, base)).all()
    assert len(model.to_payload()) < 1_000 + len(repr(CLASSIFIER_INPUTS)), "the state itself does not travel"


def test_it_learns_features_that_the_layer_does_not_read() -> None:
    name = "card_std_7d"
    assert name not in SOURCES
    learner = ConfiguredRiverLearner(SCALED)
    rows = [dict.fromkeys(FEATURES, 1.0) | {name: float(number % 2)} for number in range(200)]
    learner.learn_examples(
        example(number, label="fraud" if row[name] else "legitimate", features=row, logit=0.0, weight=1.0)
        for number, row in enumerate(rows)
    )
    features = np.array([list(rows[0].values()), list(rows[1].values())])
    low, high = learner.snapshot(200).logit(features, np.zeros(2))
    assert high > low + 1.0


def test_a_correction_takes_the_weight_of_the_former_label_too() -> None:
    """A classifier in general cannot undo: the new label is learned, at least as strongly."""
    learner, other = (ConfiguredRiverLearner(BAYES) for _ in range(2))
    corrected = example(1, label="legitimate", online_weight=2.0, former="fraud", former_weight=3.0)
    assert learner.learn_examples([example(0), corrected])["corrections"] == 1
    other.learn_examples([example(0), example(1, label="legitimate", weight=5.0)])
    features = matrix(5)
    np.testing.assert_array_equal(
        learner.snapshot(2).logit(features, np.zeros(5)), other.snapshot(2).logit(features, np.zeros(5))
    )


def test_later_examples_do_not_move_a_snapshot_and_scoring_does_not_train() -> None:
    learner = ConfiguredRiverLearner(BAYES)
    learner.learn_examples([example(i) for i in range(40)])
    model = learner.snapshot(40)
    features, base = matrix(20), np.full(20, -3.0)
    before = model.logit(features, base)
    learner.learn_examples([example(i) for i in range(40, 80)])
    np.testing.assert_array_equal(model.logit(features, base), before)
    assert learner.snapshot(80).state_digest != model.state_digest


def test_a_resumed_replay_gives_the_same_scores(tmp_path) -> None:
    registry = Registry(tmp_path)
    whole, first = (ConfiguredRiverLearner(BAYES) for _ in range(2))
    examples = [example(i) for i in range(80)]
    whole.learn_examples(examples)
    first.learn_examples(examples[:30])
    model = first.snapshot(30)
    registry.save_file(model.file_name, model.state)
    resumed, offset = resume_learner(model.to_payload(), BAYES, registry.read_file)
    assert offset == 30
    resumed.learn_examples(examples[30:])
    features, base = matrix(20), np.full(20, -3.0)
    np.testing.assert_array_equal(resumed.snapshot(80).logit(features, base), whole.snapshot(80).logit(features, base))


class Trap:
    """Unpickled, it says so."""

    sprung = False

    def __reduce__(self):
        return (_spring, ())


def _spring() -> object:
    Trap.sprung = True
    return build_classifier(BAYES)


def test_nothing_is_unpickled_before_its_digest_is_verified(tmp_path) -> None:
    import pickle

    registry = Registry(tmp_path)
    model = ConfiguredRiverLearner(BAYES).snapshot(0)
    registry.save_file(model.file_name, model.state)
    (tmp_path / "files" / model.file_name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(RegistryError, match="digest"):
        load_river(model.to_payload(), BAYES, registry.read_file)
    with pytest.raises(ModelError, match="not the one that was published"):
        ConfiguredRiverModel.from_payload(model.to_payload(), BAYES, lambda *_: pickle.dumps(Trap()))
    assert not Trap.sprung
    # The trap works: an unverified load would have sprung it.
    pickle.loads(pickle.dumps(Trap()))
    assert Trap.sprung


def test_a_payload_cannot_name_a_file_elsewhere() -> None:
    payload = ConfiguredRiverLearner(BAYES).snapshot(0).to_payload()
    name = payload.split(b'"file":"')[1].split(b'"')[0]
    with pytest.raises(ModelError, match="no River file"):
        load_river(payload.replace(name, b"../../etc/passwd"), BAYES, no_file)


def test_the_setting_decides_which_payloads_are_taken() -> None:
    layer = RiverLayer.identity().to_payload()
    configured = ConfiguredRiverLearner(BAYES).snapshot(0).to_payload()
    assert load_river(layer, None, no_file).version == RiverLayer.identity().version
    with pytest.raises(ModelError, match="RIVER_CLASSIFIER"):
        load_river(layer, BAYES, no_file)
    with pytest.raises(ModelError, match="RIVER_CLASSIFIER"):
        load_river(configured, None, no_file)


def test_before_its_first_example_a_configured_model_changes_nothing() -> None:
    base = np.array([-3.0, 2.0])
    for classifier in (None, BAYES):
        np.testing.assert_array_equal(first_river(classifier).logit(matrix(2), base), base)


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("river.nothing.There", "cannot be imported"),
        ("nonsense", "cannot be imported"),
        ("river.compose.Select", "no River classifier"),
        ("river.multiclass.OneVsRestClassifier", "without arguments"),
    ],
)
def test_a_path_that_gives_no_classifier_is_explained(path: str, complaint: str) -> None:
    with pytest.raises(ModelError, match=complaint):
        build_classifier(path)
