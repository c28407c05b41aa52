"""Whatever bytes a payload has, each reader returns a model that can be used, or raises `ModelError`."""

import math
import pickle
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from pipeline.decision.policy import LARGEST_THRESHOLD, Policy
from pipeline.decision.rules import PolicyRule, RuleSet
from pipeline.features.catalogue import FEATURES
from pipeline.scoring.configured_river import ClassifierConfig, ConfiguredRiverModel
from pipeline.scoring.distributions import distributions_of
from pipeline.scoring.errors import LONGEST_TEXT, ModelError
from pipeline.scoring.lightgbm_model import LightGBMModel
from pipeline.scoring.payload import MAX_METADATA_BYTES, payload_kind
from pipeline.scoring.river_factory import load_river, resume_learner
from pipeline.scoring.river_layer import RiverLayer
from tests.helpers.champion import rule
from tests.helpers.models import grown, matrix

CLASSIFIER = "river.naive_bayes.GaussianNB"
STATE = pickle.dumps(None)
ROWS, LOGIT = matrix(3), np.zeros(3)


def file_of_the_registry(name: str, digest: str) -> bytes:
    assert name == f"river-{digest}.bin"
    assert len(name) < 100
    return STATE


PAYLOADS: dict[str, bytes] = {
    "policy": Policy(
        0.3,
        audit_rate=0.1,
        old_rules=(PolicyRule(code="LARGE", feature="amount", op=">", value=5.0, sentence="Large."),),
        lightgbm_version="abc",
        metadata={"why": ["test", {"is": 1}]},
    ).to_payload(),
    "layer": RiverLayer.identity().to_payload(),
    "rules": RuleSet([rule("LARGE", "amount > 5 and country in ('DE', 'FR')")]).to_payload(),
    "reference": ConfiguredRiverModel(ClassifierConfig(classifier=CLASSIFIER), STATE, 9).to_payload(),
    "lightgbm": LightGBMModel(
        grown(trees=1, leaves=3).model_to_string(), distributions=distributions_of(ROWS, np.ones(3))
    ).to_payload(),
}


def use_policy(payload: bytes) -> None:
    policy = Policy.from_payload(payload)
    assert 0.0 <= policy.threshold <= LARGEST_THRESHOLD
    assert 0.0 <= policy.blend <= 1.0
    assert 0.0 <= policy.audit_rate <= 1.0
    assert policy.replace(threshold=0.5).threshold == 0.5
    policy.decide(np.full(3, 0.4), ROWS, np.arange(3, dtype=np.uint64))


def use_lightgbm(payload: bytes) -> None:
    model = LightGBMModel.from_payload(payload)
    assert np.isfinite(model.logit(ROWS)).all()


def use_river(payload: bytes) -> None:
    model = load_river(payload, None, file_of_the_registry)
    assert np.isfinite(model.logit(ROWS, LOGIT)).all()
    assert model.to_payload()


READERS: tuple[Callable[[bytes], object], ...] = (
    use_policy,
    use_lightgbm,
    use_river,
    RuleSet.from_payload,
    payload_kind,
    lambda payload: load_river(payload, CLASSIFIER, file_of_the_registry),
    lambda payload: resume_learner(payload, None, file_of_the_registry),
)


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


HOSTILE = st.sampled_from(
    [
        nested(65), nested(5_000), nested(300_000), b'{"a":' * 70 + b"1" + b"}" * 70, b"9" * 400, b"9" * 5_000,
        b"-" + b"9" * 400, b"1e999", b"1e308", b"-1e308", b"5e-324", b"NaN", b"Infinity", b"null", b"true", b"-1", b"0",
        b"2.0", b"9223372036854775808", b'"\xff"', b'"\\ud800"', b'"\\u0000"', b'""', b"[]", b"{}", b"[[]]",
        b'"' + b"x" * 200_000 + b'"', b'{"k":"' + b"x" * 70_000 + b'"}', b"[" + b"1," * 1_500 + b"1]", b'{"\xff":1}',
        b'"../../etc/passwd"', b"[0.5," + b"-1,", b'"tree\\nTree=0\\n"',
    ]
)  # fmt: skip


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of every value in a JSON document."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(place for key, value in list(items)[:8] for place in places(value, (*path, key)))]


def replaced(payload: bytes, path: tuple[Any, ...], value: bytes) -> bytes:
    """The document with the raw ``value`` at ``path``, or beside it under a name that nobody knows."""
    marker = "@@here@@"
    document = msgspec.json.decode(payload)
    if not path:
        document["unknown"] = marker
    else:
        node = document
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = marker
    return msgspec.json.encode(document).replace(f'"{marker}"'.encode(), value)


@st.composite
def changed(draw: st.DrawFn) -> bytes:
    payload = draw(st.sampled_from(list(PAYLOADS.values())))
    for _ in range(draw(st.integers(1, 2))):
        try:
            path = draw(st.sampled_from(places(msgspec.json.decode(payload))))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            break
        payload = replaced(payload, path, draw(HOSTILE))
    return payload


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    payload = bytearray(draw(st.sampled_from(list(PAYLOADS.values()))))
    for _ in range(draw(st.integers(1, 3))):
        payload[draw(st.integers(0, len(payload) - 1))] = draw(st.integers(0, 255))
    return bytes(payload[: draw(st.integers(0, len(payload)) | st.just(len(payload)))])


@settings(max_examples=200)
@given(changed() | damaged() | st.binary(max_size=60) | HOSTILE)
@example(nested(5_000))
@example(b'{"kind":' + nested(100_000) + b"}")
@example(replaced(PAYLOADS["policy"], ("metadata",), b'{"a":' + nested(5_000) + b"}"))
@example(replaced(PAYLOADS["policy"], ("metadata",), b'{"a":"\xff"}'))
@example(replaced(PAYLOADS["policy"], (), b'"\xff"'))
@example(replaced(PAYLOADS["layer"], ("weights", 0), b"1e308"))
@example(replaced(PAYLOADS["layer"], ("examples_offset",), b"9" * 400))
@example(replaced(PAYLOADS["lightgbm"], ("calibration", "slope"), b"1e308"))
@example(replaced(PAYLOADS["reference"], ("state_digest",), b'"' + "\u0660".encode() * 64 + b'"'))
def test_each_reader_returns_a_sound_model_or_refuses(payload: bytes) -> None:
    for number, read in enumerate(READERS):
        refused = ""
        try:
            read(payload)
            event(f"reader {number} takes it")
        except ModelError as error:
            refused = str(error)
        assert len(refused) <= LONGEST_TEXT + 4


@pytest.mark.parametrize(("kind", "reader"), [("policy", use_policy), ("layer", use_river), ("lightgbm", use_lightgbm)])
def test_what_nobody_changed_is_read(kind: str, reader: Callable[[bytes], None]) -> None:
    reader(PAYLOADS[kind])


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("threshold", b"2.0", "threshold must be between 0 and 1"),
        ("threshold", b"-0.1", "threshold must be between 0 and 1"),
        ("threshold", b"NaN", "not a policy"),
        ("blend", b"1.5", "blend must be"),
        ("audit_rate", b"-1", "audit rate must be"),
        ("max_reasons", b"1000000", "at most 100"),
        ("lightgbm_version", b'"' + b"x" * 101 + b'"', "at most 100 characters"),
        ("rules", b'[{"code":"A","feature":"none","op":">","value":1,"sentence":"S"}]', "no field none"),
        ("metadata", b'{"a":"' + b"x" * MAX_METADATA_BYTES + b'"}', "metadata has"),
        ("metadata", b'{"a":' + nested(64) + b"}", "nested more than 64 deep"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(field: str, value: bytes, complaint: str) -> None:
    with pytest.raises(ModelError, match=complaint):
        Policy.from_payload(replaced(PAYLOADS["policy"], (field,), value))


def test_the_threshold_that_no_score_reaches_is_a_threshold() -> None:
    assert Policy(math.nextafter(1.0, 2.0)).threshold == LARGEST_THRESHOLD
    assert not Policy(LARGEST_THRESHOLD).decide(np.ones(1), ROWS[:1], np.zeros(1, np.uint64)).alert.any()


def test_distributions_are_bounded() -> None:
    edges = b"[" + b",".join(b"%d" % edge for edge in range(1_001)) + b"]"
    counts = b"[" + b",".join([b"1"] * 1_003) + b"]"
    payload = replaced(PAYLOADS["lightgbm"], ("distributions", 0, "edges"), edges)
    with pytest.raises(ModelError, match="distributions"):
        LightGBMModel.from_payload(replaced(payload, ("distributions", 0, "counts"), counts))
    assert len(FEATURES) == len(msgspec.json.decode(PAYLOADS["lightgbm"])["distributions"])
