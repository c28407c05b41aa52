"""Every score again from the versions that its decision names: LightGBM's own predictor, the layer, the policy."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import lightgbm
import numpy as np

from tests.chaos.arithmetic import LOGIT_BOUND, Layer, identity, sample_position, sigmoid
from tests.chaos.run import Check, Run, key_of, log_of

Features = dict[str, float | None]
"""As a row of ``features`` has them."""
CLOSE = 1e-9
"""Of a fold that is written otherwise, and so rounds otherwise; a lesson that is missed moves weights by far more."""
VERSION_DIGITS = 12
COMPARISONS = {
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
}


@dataclass
class Models:
    """What stands in ``models``, by version; and the online layers, folded again from ``examples``."""

    lightgbm: dict[str, dict[str, Any]] = field(default_factory=dict)
    policy: dict[str, dict[str, Any]] = field(default_factory=dict)
    river: dict[str, dict[str, Any]] = field(default_factory=dict)
    in_order: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """Versions and payloads of the online model, as they were published."""

    @classmethod
    def of(cls, run: Run, check: Check) -> "Models":
        """Read ``models``; digests and versions must be those of the payloads."""
        models = cls()
        for entry, record in run.logs.decoded("models"):
            name, version, payload = record["name"], record["version"], record["payload"]
            if name == "rates":
                continue
            value = entry.value or b""
            raw = value[value.index(b'"payload":') + len(b'"payload":') : -1]
            check.same(f"{name} {version}: digest", record["digest"], hashlib.sha256(raw).hexdigest())
            check.same(f"{name} {version}: key", entry.key, record["digest"].encode())
            if name == "river":
                wanted = f"{configuration_digest(payload['config'])}@{payload['examples_offset']}"
                models.in_order.append((version, payload))
            else:
                wanted = record["digest"][:VERSION_DIGITS]
            check.same(f"{name}: version", version, wanted)
            getattr(models, name)[version] = payload
        return models

    @property
    def starts(self) -> frozenset[tuple[str, int]]:
        """LightGBM versions, each with the offsets in ``examples`` at which a layer on it began."""
        told = {(p["config"]["lightgbm_version"], p["config"].get("examples_start", 0)) for _, p in self.in_order}
        return frozenset(told | {(version, 0) for version in self.lightgbm})

    def first_offset(self, lightgbm_version: str, offsets: Sequence[int]) -> int:
        """Where the layer on a LightGBM version began: as many examples before its first record as that has counted.

        ``offsets`` are those of all examples.
        """
        for _, payload in self.in_order:
            if payload["config"]["lightgbm_version"] == lightgbm_version:
                before = [offset for offset in offsets if offset < payload["examples_offset"]]
                counted = sum(payload["lessons"].values())
                return 0 if counted >= len(before) else [*before, int(payload["examples_offset"])][-counted - 1]
        return 0

    def folded(self, run: Run) -> dict[tuple[str, int], Layer]:
        """Layers by (LightGBM version, offset in ``examples``): a fresh fold of the records before the offset."""
        wanted: dict[str, set[int]] = defaultdict(set)
        for version in {one["versions"]["lightgbm"] for _, one in run.logs.decoded("decisions")}:
            wanted[version].add(0)
        for _, payload in self.in_order:
            wanted[payload["config"]["lightgbm_version"]].add(int(payload["examples_offset"]))
        examples = run.logs.decoded("examples")
        layers: dict[tuple[str, int], Layer] = {}
        for version, offsets in wanted.items():
            layer, start = Layer(), self.first_offset(version, [entry.offset for entry, _ in examples])
            waiting = sorted(offsets)
            for entry, example in examples:
                while waiting and waiting[0] <= entry.offset:
                    layers[version, waiting.pop(0)] = _copy(layer)
                if entry.offset >= start:
                    layer.teach(example, version)
            for offset in waiting:
                layers[version, offset] = _copy(layer)
        return layers


def configuration_digest(config: dict[str, Any]) -> str:
    """The part of a layer's version before the ``@``."""
    text = json.dumps(config, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:VERSION_DIGITS]


def weights_are_a_fresh_fold(run: Run) -> Check:
    """Weights, intercept and lessons of every published layer, against a fold of the same examples from the start."""
    check = Check("River's weights are a fresh fold of the examples")
    models = Models.of(run, check)
    layers = models.folded(run)
    check.compared = {"versions": len(models.in_order), "examples": len(run.logs.decoded("examples"))}
    offsets = [entry.offset for entry, _ in run.logs.decoded("examples")]
    for version, payload in models.in_order:
        layer = layers[payload["config"]["lightgbm_version"], int(payload["examples_offset"])]
        check.same(f"River {version}: lessons", payload["lessons"], layer.lessons)
        base, start = payload["config"]["lightgbm_version"], payload["config"].get("examples_start", 0)
        between = range(*sorted((start, models.first_offset(base, offsets))))
        if any(offset in between for offset in offsets):
            check.differs(f"River {version}: its configuration says that it began at {start}; its lessons do not")
        for i, (found, wanted) in enumerate(zip(payload["weights"], layer.weights, strict=True)):
            if not _close(found, wanted):
                check.differs(f"River {version}: weight {i} is {found!r}, a fresh fold gives {wanted!r}")
        if not _close(payload["intercept"], layer.intercept):
            check.differs(f"River {version}: intercept {payload['intercept']!r}, a fold gives {layer.intercept!r}")
    for base, first in {p["config"]["lightgbm_version"]: p for _, p in reversed(models.in_order)}.items():
        if models.first_offset(base, offsets) > 0 and first["lessons"]["learned"]:
            check.differs(f"the layer on {base} began behind the first example, and was not published before a lesson")
    entries = run.logs.entries("examples")
    end = entries[-1].offset + 1 if entries else 0
    if entries and (not models.in_order or int(models.in_order[-1][1]["examples_offset"]) != end):
        check.differs(f"the examples end at {end}, the last published layer does not")
    return check


def scores_are_reproduced(run: Run) -> Check:
    """Log-odds, probabilities, blend, selection and action of every decision from the versions that it names."""
    check = Check("scores are reproduced from their versions")
    models = Models.of(run, Check("models"))
    layers = models.folded(run)
    names = {version: list(payload["feature_names"]) for version, payload in models.lightgbm.items()}
    by_version: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for _, decision in run.logs.decoded("decisions"):
        if log_of(decision) in run.features_at:
            by_version[decision["versions"]["lightgbm"]].append(decision)
        else:
            check.differs(f"{key_of(decision)} has no row of features to compute its score from")
    rivers: set[str] = set()
    for version, decisions in by_version.items():
        payload = models.lightgbm.get(version)
        if payload is None:
            check.differs(f"{len(decisions)} decisions name LightGBM {version}, which was never published")
            continue
        # Rows of one place are of the same features, whatever models decided.
        features = [run.features_at[log_of(decision)][-1]["features"] for decision in decisions]
        logits = _lightgbm_logits(check, payload, names[version], decisions, features)
        for decision, row, logit in zip(decisions, features, logits, strict=True):
            rivers.add(decision["versions"]["river"])
            _reproduce(check, models, layers, decision, row, float(logit))
    check.compared = {
        "decisions": sum(map(len, by_version.values())),
        "lightgbm_versions": len(by_version),
        "river_versions": len(rivers),
    }
    return check


def _lightgbm_logits(
    check: Check, payload: dict[str, Any], names: list[str], decisions: list[dict[str, Any]], features: list[Features]
) -> "np.ndarray[Any, np.dtype[np.float64]]":
    for decision, row in zip(decisions, features, strict=True):
        if list(row) != names:
            check.differs(f"{key_of(decision)} does not have the features of its LightGBM version")
    matrix = np.array([[row.get(name) for name in names] for row in features], np.float64)
    booster = lightgbm.Booster(model_str=payload["text"])
    margin = np.asarray(booster.predict(matrix, raw_score=True, num_threads=1))
    calibration = payload["calibration"]
    logits = np.clip(margin * calibration["slope"] + calibration["intercept"], -LOGIT_BOUND, LOGIT_BOUND)
    return np.asarray(logits, np.float64)


def _reproduce(
    check: Check,
    models: Models,
    layers: dict[tuple[str, int], Layer],
    decision: dict[str, Any],
    features: Features,
    logit: float,
) -> None:
    key, versions = key_of(decision), decision["versions"]
    policy = models.policy.get(versions["policy"])
    digest, _, offset = versions["river"].partition("@")
    layer = layers.get((versions["lightgbm"], int(offset)))
    if policy is None or layer is None or digest not in _digests(models.starts):
        check.differs(f"{key} names versions that were never published: {versions}")
        return
    river = layer.logit(features, logit)
    blend = policy["blend"]
    for name, found, wanted in (
        ("log-odds of LightGBM", decision["logit"], logit),
        ("score of LightGBM", decision["model_scores"]["lightgbm"], sigmoid(logit)),
        ("score of River", decision["model_scores"]["river"], sigmoid(river)),
        ("score", decision["score"], sigmoid((1.0 - blend) * logit + blend * river)),
        ("threshold", decision["threshold"], policy["threshold"]),
    ):
        if not _close(found, wanted):
            check.differs(f"{key}: {name} {found!r}, reproduced {wanted!r}")
    selection, probability = _select(policy, decision["score"], features, identity(*key))
    check.same(f"{key}: selection", decision["selection"], selection)
    check.same(f"{key}: action", decision["action"], "allow" if selection is None else "alert")
    check.same(f"{key}: selection probability", decision["selection_probability"], probability)


def _select(policy: dict[str, Any], score: float, features: Features, number: int) -> tuple[str | None, float]:
    if score >= policy["threshold"]:
        return "score", 1.0
    for rule in policy["rules"]:
        value = features[rule["feature"]]
        if value is not None and COMPARISONS[rule["op"]](value, rule["value"]):
            return "rule", 1.0
    audited = sample_position(number, "audit") < policy["audit_rate"]
    return "audit" if audited else None, policy["audit_rate"]


@cache
def _digests(starts: frozenset[tuple[str, int]]) -> set[str]:
    """Of layers on LightGBM versions that began at offsets of ``examples``, as the documents configure them."""
    amounts = ["below 10", "10 to 30", "30 to 100", "100 to 300", "300 to 1000", "from 1000"]
    hours = ["below 4", "4 to 8", "8 to 12", "12 to 16", "16 to 20", "from 20"]
    inputs = ["logit", *(f"amount {b}" for b in amounts), *(f"hour {b}" for b in hours)]
    inputs += ["card new to merchant", "surge at merchant"]
    return {
        configuration_digest(
            {
                "lightgbm_version": version,
                "inputs": inputs,
                "logit_scale": 4.0,
                "learning_rate": 0.05,
                "revision": 1,
                **({"examples_start": start} if start else {}),
            }
        )
        for version, start in starts
    }


def _copy(layer: Layer) -> Layer:
    copy = Layer()
    copy.weights, copy.intercept, copy.lessons = list(layer.weights), layer.intercept, dict(layer.lessons)
    return copy


def _close(found: float, wanted: float) -> bool:
    return abs(found - wanted) <= CLOSE * max(1.0, abs(wanted))
