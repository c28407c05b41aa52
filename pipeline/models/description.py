"""Facts of a LightGBM version or a policy as plain values, and the differences of two."""

import timeit
from collections.abc import Callable, Iterator
from typing import Any, Final, TypedDict

import msgspec
import numpy as np

from pipeline.decision.policy import Policy
from pipeline.features.catalogue import FEATURES
from pipeline.models.known import KnownVersion
from pipeline.models.registry import POLICY
from pipeline.scoring.errors import ModelError
from pipeline.scoring.lightgbm_model import LightGBMModel
from pipeline.scoring.payload import decode_payload
from pipeline.scoring.trees import gain_shares, read_trees

Facts = dict[str, Any]


class _Distribution(msgspec.Struct, frozen=True):
    name: str


class _LightGBM(msgspec.Struct, frozen=True):
    """The parts of a LightGBM version that can be read whatever kernel it is of."""

    kernel: str
    feature_names: tuple[str, ...]
    calibration: dict[str, float]
    metadata: dict[str, Any]
    text: str
    distributions: tuple[_Distribution, ...] = ()


_Number = float | None
_Period = TypedDict("_Period", {"from": str, "to": str})
_OfPeriod = TypedDict(
    "_OfPeriod",
    {"from": str, "days": float, "rows": float, "frauds": float, "average_precision": _Number, "auc_roc": _Number},
)
_Bin = TypedDict("_Bin", {"from": float, "to": float, "rows": float, "mean_score": float, "observed_rate": float})


class _Segment(TypedDict):
    segment: str
    value: str
    rows: float
    frauds: float
    expected_frauds: float
    alert_rate: float
    precision: _Number
    false_positives_per_1000: float


class _Sensitivity(TypedDict):
    labels: str
    wrong: float
    average_precision: _Number
    card_precision_100: _Number


class _Metrics(TypedDict, total=False):
    average_precision: _Number


class _RecordedMetadata(msgspec.Struct, frozen=True):
    """The shapes of what a training records of a version, as far as pages and commands show them."""

    training: dict[str, Any] = {}
    metrics: _Metrics | None = None
    periods: dict[str, _Period] = {}
    frauds: dict[str, float] = {}
    input: dict[str, Any] = {}
    request: dict[str, dict[str, Any]] = {}
    benchmark: dict[str, float | list[str] | None] = {}
    by_period: list[_OfPeriod] = []
    calibration_table: list[_Bin] = []
    segments: list[_Segment] = []
    sensitivity: list[_Sensitivity] = []


_LIGHTGBM: Final = msgspec.json.Decoder(_LightGBM)
_REGIME: Final = (
    *("reported", "label_delay_days", "delay_spread", "never_reported"),
    *("early_share", "early_hours", "legitimate_share", "corrected_share", "correction_days"),
)
"""Arguments of a training that say which labels there are."""
_MEASURED_ROWS: Final = 512
_EXPLAINED_ROWS: Final = 8
_MEASUREMENTS: Final = 5
_MOVED: Final = ("training", "metrics")
"""Metadata that has a place of its own among the facts."""


def facts_of(known: KnownVersion) -> Facts:
    """Return what is known of a version, ready for JSON.

    Raises:
        ModelError: Its content cannot be read at all.
    """
    return policy_facts(known) if known.name == POLICY else lightgbm_facts(known)


def policy_facts(known: KnownVersion) -> Facts:
    """Return the facts of a policy; raises `ModelError`."""
    policy = Policy.from_payload(known.payload)
    return {
        "kind": known.name,
        "version": known.version,
        "digest": known.digest,
        "threshold": policy.threshold,
        "blend": policy.blend,
        "audit_rate": policy.audit_rate,
        "audit": None if policy.audit is None else msgspec.to_builtins(policy.audit),
        "max_reasons": policy.max_reasons,
        "old_rules": [rule.code for rule in policy.old_rules],
        "lightgbm_version": policy.lightgbm_version,
        "metadata": policy.metadata,
    }


def lightgbm_facts(known: KnownVersion) -> Facts:
    """Return the facts of a LightGBM version, of another kernel too; raises `ModelError`."""
    content = decode_payload(known.payload, _LIGHTGBM, "a LightGBM version")
    metadata = content.metadata
    metrics = metadata.get("metrics") or (known.entry.details.get("metrics") if known.entry is not None else None)
    try:
        msgspec.convert(metadata | {"metrics": metrics}, _RecordedMetadata)
    except msgspec.ValidationError as error:
        raise ModelError(
            f"LightGBM version {known.version} is forged or damaged: no training records such metadata ({error}); do "
            "not use it, and look at who published it"
        ) from error
    own = {
        "kind": known.name,
        "version": known.version,
        "digest": known.digest,
        "kernel": content.kernel,
        "libraries": dict(known.entry.libraries) if known.entry is not None else {},
        "trees": content.text.count("\nTree="),
        "features": [distribution.name for distribution in content.distributions] or list(content.feature_names),
        "hyperparameters": metadata.get("training", {}),
        "calibration": content.calibration,
    }
    recorded = {name: value for name, value in metadata.items() if name not in (*own, *_MOVED)}
    return own | recorded | {"metrics": metrics or {}}


def measured_cost(known: KnownVersion) -> dict[str, float]:
    """Measure how long a LightGBM version takes, in microseconds a row on this machine.

    Returns:
        ``score`` of a transaction in a batch, and ``explanation`` of an alert. Empty for a policy, and for a version
        that this program cannot use.
    """
    try:
        model = known.usable()
    except ModelError:
        return {}
    if not isinstance(model, LightGBMModel):
        return {}
    rows = np.random.default_rng(0).lognormal(size=(_MEASURED_ROWS, len(FEATURES)))
    explained = rows[:_EXPLAINED_ROWS]
    return {
        "score": _microseconds(lambda: model.logit(rows)) / len(rows),
        "explanation": _microseconds(lambda: model.contributions(explained)) / len(explained),
    }


def _microseconds(work: Callable[[], object]) -> float:
    return min(timeit.repeat(work, number=1, repeat=_MEASUREMENTS)) * 1e6


def label_regime(facts: Facts) -> dict[str, Any]:
    """Return what a LightGBM version says of its labels, by dotted name; else the arguments of its training.

    Empty where neither is recorded.
    """
    labels = facts.get("labels")
    if isinstance(labels, dict):
        return dict(flat(labels))
    arguments = facts.get("request", {}).get("arguments", {})
    return {name: value for name, value in arguments.items() if name in _REGIME and value is not None}


def metrics_of(known: KnownVersion) -> dict[str, Any]:
    """Return the metrics of a LightGBM version's training; empty where none are recorded."""
    found: dict[str, Any] = lightgbm_facts(known)["metrics"]
    return found


def gains(known: KnownVersion) -> dict[str, float]:
    """Return the share of all splits' gain by feature, the largest first; raises `ModelError`."""
    content = decode_payload(known.payload, _LIGHTGBM, "a LightGBM version")
    shares = gain_shares(read_trees(content.text, tuple(content.feature_names)), content.feature_names)
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def differences(first: Facts, second: Facts) -> dict[str, tuple[Any, Any]]:
    """Return the facts in which two versions differ, by dotted name, each with both values; None where one lacks it.

    Lists are compared by what only one of them has. Libraries are compared where both are known.

    >>> differences({"version": "a", "m": {"x": 1, "y": 2}}, {"version": "b", "m": {"x": 1, "y": 3}, "f": ["q"]})
    {'version': ('a', 'b'), 'm.y': (2, 3), 'f': (None, ['q'])}
    """
    if not (first.get("libraries") and second.get("libraries")):
        first, second = first | {"libraries": {}}, second | {"libraries": {}}
    first_facts, second_facts = dict(flat(first)), dict(flat(second))
    found: dict[str, tuple[Any, Any]] = {}
    for name in {**first_facts, **second_facts}:
        a, b = first_facts.get(name), second_facts.get(name)
        if a == b:
            continue
        if isinstance(a, list) and isinstance(b, list):
            a, b = [value for value in a if value not in b], [value for value in b if value not in a]
        found[name] = (a, b)
    return found


def flat(facts: Facts, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield values by dotted name.

    >>> list(flat({"a": {"b": 1}, "c": 2}))
    [('a.b', 1), ('c', 2)]
    """
    for name, value in facts.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
