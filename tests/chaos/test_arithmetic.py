"""The checker's own arithmetic against published values, and against the pipeline's."""

import msgspec
import numpy as np
import pytest

from pipeline.features.catalogue import KERNEL_VERSION
from pipeline.features.xxh3 import transaction_hash
from pipeline.learning.sampling import sample_position as pipelines_position
from pipeline.scoring.river_learner import LayerLearner
from tests.chaos import arithmetic
from tests.helpers.models import COLUMN, example, matrix


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("21", -973932308),
        ("foobar", -790332482),
        ("a-little-bit-long-string", -985981536),
        ("a-little-bit-longer-string", -1486304829),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        ("abc", 479470107),
    ],
)
def test_murmur2_gives_what_kafka_s_own_tests_expect(text: str, value: int) -> None:
    assert arithmetic.murmur2(text.encode()) == value % 2**32


def test_identities_and_samples_are_the_pipeline_s() -> None:
    for number in range(50):
        own = arithmetic.identity("c1", f"t{number}")
        assert own == transaction_hash("c1", f"t{number}")
        assert arithmetic.sample_position(own, "audit") == pipelines_position(own, "audit")


def test_a_replay_of_examples_gives_the_weights_of_the_learner() -> None:
    examples = [example(number, online_weight=1.0 if number % 5 == 0 else 10.0) for number in range(400)]
    # Corrections both ways, withdrawals, and what nothing is learned from.
    for number in range(0, 40, 3):
        former, weight = ("fraud", 1.0) if number % 5 == 0 else ("legitimate", 10.0)
        now = "withdrawn" if number % 2 else "legitimate" if former == "fraud" else "fraud"
        online_weight = 0.0 if now == "withdrawn" else 2.5
        undone = {"former": former, "former_weight": weight, "revision": 1}
        examples.append(example(number, label=now, online_weight=online_weight, **undone))
    examples += [example(500, label_source="rule"), example(501, online_weight=0.0), example(502, kernel="other")]
    examples += [example(503, held=True), example(504, label="disputed")]
    learner, layer = LayerLearner(), arithmetic.Layer()
    learner.learn_examples(examples)
    for item in examples:
        layer.learn(msgspec.json.decode(msgspec.json.encode(item)), KERNEL_VERSION)
    published = learner.snapshot(403)
    assert np.allclose(layer.weights, published.weights, rtol=1e-12, atol=1e-13)
    assert np.allclose(layer.means, published.scale.means, rtol=1e-12, atol=1e-13)
    assert np.allclose(layer.squares, published.scale.squares, rtol=1e-9, atol=1e-9)
    assert layer.intercept == pytest.approx(published.intercept, rel=1e-12)
    assert layer.updates == msgspec.to_builtins(published.updates)
    features = matrix(20, seed=5)
    named = [{name: None if np.isnan(row[c]) else float(row[c]) for name, c in COLUMN.items()} for row in features]
    own = [layer.logit(row, -3.0) for row in named]
    assert np.allclose(own, published.logit(features, np.full(20, -3.0)), rtol=1e-12)


def test_of_several_labels_the_higher_rank_then_the_later_holds() -> None:
    labels = [("fraud", "customer", 5), ("legitimate", "analyst", 3), ("fraud", "rule", 9), ("disputed", "issuer", 99)]
    assert arithmetic.holds(labels) == arithmetic.holds(reversed(labels)) == "legitimate"
    assert arithmetic.holds([("fraud", "rule", 9)]) == "none"
    assert arithmetic.holds([*labels, ("unknown", "analyst", 4)]) == "none"
