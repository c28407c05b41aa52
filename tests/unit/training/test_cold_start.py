"""A version without trees: the online model alone scores."""

import json

import lightgbm
import numpy as np
import pytest
from click.testing import CliRunner

from pipeline.commands.model_changes import cold_start_command
from pipeline.engine.scores.active_models import ActiveModels
from pipeline.engine.scores.decisions import decided
from pipeline.features.catalogue import DEFAULT_FEATURES, FEATURES
from pipeline.features.xxh3 import transaction_hash
from pipeline.scoring.blend import sigmoid
from pipeline.scoring.kinds import KINDS, RIVER
from pipeline.scoring.lightgbm_model import LightGBMModel
from pipeline.scoring.river_factory import first_river, new_learner
from pipeline.training.cold_start import cold_start, treeless_model
from pipeline.training.score_metrics import auc_roc
from tests.helpers.models import example, matrix, truth


def test_it_is_one_version_that_gives_every_transaction_the_same_log_odds() -> None:
    model = treeless_model(0.01)
    assert LightGBMModel.from_payload(treeless_model(0.01).to_payload()).version == model.version
    np.testing.assert_allclose(sigmoid(model.logit(matrix(50))), 0.01, rtol=1e-12)
    assert not model.contributions(matrix(5)).any()
    assert model.trained_on == DEFAULT_FEATURES
    # LightGBM itself reads the trees that there are.
    booster = lightgbm.Booster(model_str=json.loads(model.to_payload())["text"])
    assert not np.asarray(booster.predict(matrix(5), raw_score=True)).any()


@pytest.mark.parametrize("classifier", [None, "tests.unit.scoring.test_river_configured.scaled_regression"])
def test_the_online_model_scores_alone(classifier: str | None) -> None:
    lightgbm_model, policy = cold_start(0.05, 0.5, 0.0)
    features = matrix(4_000, seed=1)
    fraud, names = truth(features), list(map(str, range(4_000)))
    identities = np.array([transaction_hash(name, name) for name in names[2_000:]], np.uint64)

    def scored(river: object) -> tuple[np.ndarray, np.ndarray]:
        models = ActiveModels(lightgbm_model, river, policy)  # type: ignore[arg-type]
        found = decided(models, features[2_000:], lambda: identities)
        return found.score, found.logits[:, KINDS.index(RIVER)]

    before, _ = scored(first_river(classifier))
    assert len(set(before.tolist())) == 1
    learner = new_learner(classifier)
    logit = float(lightgbm_model.logit(features[:1])[0])
    learner.learn_examples(
        example(
            number,
            label="fraud" if fraud[number] else "legitimate",
            weight=1.0,
            logit=logit,
            features={
                name: None if np.isnan(value) else float(value)
                for name, value in zip(FEATURES, features[number], strict=True)
            },
        )
        for number in range(2_000)
    )
    score, river_logit = scored(learner.snapshot(2_000))
    np.testing.assert_array_equal(score, sigmoid(river_logit))
    auc = auc_roc(fraud[2_000:], score, np.ones(2_000))
    assert auc is not None
    assert auc > 0.75


@pytest.mark.parametrize("option", ["--fraud-share", "--threshold", "--audit-rate"])
def test_what_is_no_number_is_refused_before_a_cluster_is_asked(option: str) -> None:
    result = CliRunner().invoke(cold_start_command, [option, "nan", "--reason", "A test."])
    assert result.exit_code == 2
    assert f"Invalid value for '{option}': 'nan' is no finite number" in result.output
