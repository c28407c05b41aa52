"""Figures of scores as served, over the newest labelled examples."""

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from pipeline.scoring.blend import sigmoid
from pipeline.scoring.prequential import Prequential
from schemas.messages import Example
from tests.helpers.models import example


def served(number: int) -> Example:
    random = np.random.default_rng(number)
    # Rounded, so that scores are equal now and then.
    logit, river_logit, score = random.normal(-2, 1), random.normal(-2, 1), float(random.random())
    return example(number, logit=round(logit, 1), river_logit=round(river_logit, 1), score=round(score, 2))


def test_the_figures_are_those_of_scikit_learn_over_the_newest_examples() -> None:
    prequential, examples = Prequential(window=100), [served(number) for number in range(250)]
    prequential.add(examples[:130])
    prequential.add(examples[130:])
    newest = examples[-100:]
    fraud, weight = [label.label == "fraud" for label in newest], [item.weight for item in newest]
    wanted = {
        "lightgbm": sigmoid(np.array([item.logit for item in newest])),
        "river": sigmoid(np.array([item.river_logit for item in newest], np.float64)),
        "blend": np.array([decision.score for decision in newest]),
    }
    figures = prequential.figures()
    assert list(figures) == list(wanted)
    for name, score in wanted.items():
        assert figures[name].auc == pytest.approx(roc_auc_score(fraud, score, sample_weight=weight), rel=1e-12)
        assert figures[name].log_loss == pytest.approx(log_loss(fraud, score, sample_weight=weight), rel=1e-9)
    assert prequential.examples == 250


def test_what_says_nothing_new_is_left_out() -> None:
    prequential = Prequential()
    assert prequential.figures() == {}
    prequential.add(
        [
            example(0, revision=1),
            example(1, held=True),
            example(2, label="withdrawn"),
            example(3, label_source="rule"),
        ]
    )
    assert prequential.examples == 0
    prequential.add([example(4, label="presumed_legitimate", label_source=None, river_logit=None)])
    figures = prequential.figures()
    assert figures["river"] == figures["lightgbm"]
    assert figures["blend"].auc is None
