"""Every score again from the versions that its decision names: LightGBM's own predictor, the layer, the policy."""

import copy
import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import lightgbm
import numpy as np

from tests.chaos.arithmetic import (
    LOGARITHMS,
    LOGIT_BOUND,
    MISSING,
    WINDOWS,
    ZERO,
    Layer,
    identity,
    sample_position,
    sigmoid,
)
from tests.chaos.run import Check, Run, key_of, log_of

Features = dict[str, float | None]
"""As a row of ``features`` has them."""
CLOSE = 1e-9
"""Tolerance for a replay that rounds otherwise; a training update that is missed moves weights by far more."""
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
    """Contents of ``models`` by version; and the online layers, replayed again from ``examples``."""

    lightgbm: dict[str, dict[str, Any]] = field(default_factory=dict)
    policy: dict[str, dict[str, Any]] = field(default_factory=dict)
    river: dict[str, dict[str, Any]] = field(default_factory=dict)
    in_order: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """Versions and payloads of the online model, as they were published."""

    @classmethod
    def from_run(cls, run: Run, check: Check) -> "Models":
        """Read ``models``; digests and versions must be those of the payloads."""
        models = cls()
        for entry, record in run.logs.decoded("models"):
            name, version, payload = record["name"], record["version"], record["payload"]
            if name in ("rates", "features"):
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
    def kernel(self) -> str:
        """The kernel version of all LightGBM versions."""
        return str(next(iter(self.lightgbm.values()))["kernel"])

    def replayed(self, run: Run) -> dict[int, Layer]:
        """Layers by offset in ``examples``: a fresh replay of the records before the offset."""
        waiting = sorted({0, *(int(payload["examples_offset"]) for _, payload in self.in_order)})
        layers, layer = {}, Layer()
        for entry, example in run.logs.decoded("examples"):
            while waiting and waiting[0] <= entry.offset:
                layers[waiting.pop(0)] = copy.deepcopy(layer)
            layer.learn(example, self.kernel)
        return layers | dict.fromkeys(waiting, layer)


def configuration_digest(config: dict[str, Any]) -> str:
    """The part of a layer's version before the ``@``."""
    text = json.dumps(config, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:VERSION_DIGITS]


def weights_are_a_fresh_replay(run: Run) -> Check:
    """Weights, intercept and updates of every published layer, against a replay of the same examples from the start."""
    check = Check("River's weights are a fresh replay of the examples")
    models = Models.from_run(run, check)
    layers = models.replayed(run)
    check.compared = {"versions": len(models.in_order), "examples": len(run.logs.decoded("examples"))}
    for version, payload in models.in_order:
        layer = layers[int(payload["examples_offset"])]
        check.same(f"River {version}: updates", payload["lessons"], layer.updates)
        scale = payload["scale"]
        for name, numbers, own in (
            ("weight", payload["weights"], layer.weights),
            ("mean", scale["means"], layer.means),
            ("square", scale["squares"], layer.squares),
            ("intercept", [payload["intercept"]], [layer.intercept]),
            ("scale", [scale["weight"]], [layer.weight]),
        ):
            for i, (found, wanted) in enumerate(zip(numbers, own, strict=True)):
                if not _close(found, wanted):
                    check.differs(f"River {version}: {name} {i} is {found!r}, a fresh replay gives {wanted!r}")
    entries = run.logs.entries("examples")
    end = entries[-1].offset + 1 if entries else 0
    if entries and (not models.in_order or int(models.in_order[-1][1]["examples_offset"]) != end):
        check.differs(f"the examples end at {end}, the last published layer does not")
    return check


def scores_are_reproduced(run: Run) -> Check:
    """Log-odds, probabilities, blend, selection and action of every decision from the versions that it names."""
    check = Check("scores are reproduced from their versions")
    models = Models.from_run(run, Check("models"))
    layers = models.replayed(run)
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
    layers: dict[int, Layer],
    decision: dict[str, Any],
    features: Features,
    logit: float,
) -> None:
    key, versions = key_of(decision), decision["versions"]
    policy = models.policy.get(versions["policy"])
    digest, _, offset = versions["river"].partition("@")
    layer = layers.get(int(offset))
    if policy is None or layer is None or digest != _digest(models.kernel):
        check.differs(f"{key} names versions that were never published: {versions}")
        return
    river = layer.logit(features, logit)
    blend = policy["blend"]
    for name, found, wanted in (
        ("log-odds of LightGBM", decision["logit"], logit),
        ("score of LightGBM", decision["model_scores"]["lightgbm"], sigmoid(logit)),
        ("log-odds of River", decision["river_logit"], river),
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
    for rule in policy.get("rules", ()):
        value = features[rule["feature"]]
        if value is not None and COMPARISONS[rule["op"]](value, rule["value"]):
            return "rule", 1.0
    audited = sample_position(number, "audit") < policy["audit_rate"]
    return "audit" if audited else None, policy["audit_rate"]


@cache
def _digest(kernel: str) -> str:
    """Return the digest of a layer's configuration, as the documents describe it."""
    amounts = ["below 10", "10 to 30", "30 to 100", "100 to 300", "300 to 1000", "from 1000"]
    hours = ["below 4", "4 to 8", "8 to 12", "12 to 16", "16 to 20", "from 20"]
    inputs = [*LOGARITHMS, *(f"no {name}" for name in MISSING), *(f"{name} is 0" for name in ZERO)]
    inputs += [*(f"amount {band}" for band in amounts), *(f"hour {band}" for band in hours)]
    inputs += [*WINDOWS, *(f"no {name}" for name in WINDOWS)]
    return configuration_digest(
        {"inputs": inputs, "learning_rate": 0.001, "input_bound": 3.0, "revision": 3, "kernel": kernel}
    )


def _close(found: float, wanted: float) -> bool:
    return abs(found - wanted) <= CLOSE * max(1.0, abs(wanted))
