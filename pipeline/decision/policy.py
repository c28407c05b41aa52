"""The policy: which transactions become alerts. Immutable; one version for all partitions."""

import math
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.decision.audit_sample import Audit, check_audit, key_check
from pipeline.decision.rules import MOST_OLD_RULES, PolicyRule, adopted
from pipeline.learning.sampling import AUDIT_SAMPLE, keyed_positions, sample_positions
from pipeline.scoring.errors import ModelError
from pipeline.scoring.kinds import BESIDE, RIVER
from pipeline.scoring.payload import VERSION_DIGITS, check_metadata, decode_payload, encode_payload, payload_digest

POLICY_KIND: Final = "policy"

LARGEST_THRESHOLD: Final = math.nextafter(1.0, 2.0)
"""The threshold that no score reaches: rules and audits only."""
FIRST_BLEND: Final = 0.0
"""Blend of a new policy: the online model learns and is scored beside LightGBM, which decides alone until the gate of
`pipeline.decision.online_gate` lets the online model in."""
MOST_REASONS: Final = 100
_LONGEST_VERSION: Final = 100
"""Characters of the name of a LightGBM version."""

BY_SCORE: Final = "score"
BY_RULE: Final = "rule"
BY_AUDIT: Final = "audit"
BY_LIST: Final = "list"


class _PolicyPayload(msgspec.Struct, frozen=True, kw_only=True):
    kind: str
    threshold: float
    blend: float
    audit_rate: float
    old_rules: tuple[PolicyRule, ...] = msgspec.field(name="rules")
    """Empty but in policies of earlier releases, which read no policy without it."""
    max_reasons: int
    lightgbm_version: str | None
    metadata: dict[str, Any]
    audit: Audit | msgspec.UnsetType = msgspec.UNSET
    """Left out where there is none, so that policies without one keep their versions."""
    weights: dict[str, float] | msgspec.UnsetType = msgspec.UNSET
    """Likewise."""


_PAYLOAD: Final = msgspec.json.Decoder(_PolicyPayload)


class PolicyDecisions(NamedTuple):
    """A policy's decisions about n transactions; every array has shape (n,)."""

    alert: NDArray[np.bool_]
    selection: list[str | None]
    """``score``, ``rule`` or ``audit``; None where there is no alert."""
    selection_probability: NDArray[np.float64]
    """Probability of being put before an analyst: 1 for score and rules, else that of the audit."""


class Policy:
    """Threshold, blend and audit.

    Args:
        threshold: Score at or above which a transaction becomes an alert: 0 to `LARGEST_THRESHOLD`.
        blend: Share of the online model, 0 to 1, in what ``weights`` leave; LightGBM has the rest.
        audit_rate: Share of all transactions to audit, 0 to 1; must be 0 beside an ``audit``.
        max_reasons: Most reasons of an alert, 1 to `MOST_REASONS`.
        lightgbm_version: The version for whose scores the threshold was chosen; None: not said.
        metadata: What describes the choice, as JSON can hold it; None: nothing.
        audit: Takes the place of ``audit_rate``; one with a key decides only after `keyed`.
        weights: Those of further kinds of models in the score, by name: 0 or more, at most 1 together; None: none.
        old_rules: Rules of an earlier release, which are evaluated with the set of rules until they are adopted.

    Raises:
        ModelError: They make no sense.
    """

    def __init__(
        self,
        threshold: float,
        *,
        blend: float = FIRST_BLEND,
        audit_rate: float = 0.0,
        max_reasons: int = 5,
        lightgbm_version: str | None = None,
        metadata: dict[str, Any] | None = None,
        audit: Audit | None = None,
        weights: Mapping[str, float] | None = None,
        old_rules: tuple[PolicyRule, ...] = (),
    ) -> None:
        content = _PolicyPayload(
            kind=POLICY_KIND,
            threshold=float(threshold),
            blend=float(blend),
            audit_rate=float(audit_rate),
            old_rules=tuple(old_rules),
            max_reasons=max_reasons,
            lightgbm_version=lightgbm_version,
            metadata=metadata or {},
            audit=msgspec.UNSET if audit is None else audit,
            weights={name: float(weight) for name, weight in weights.items()} if weights else msgspec.UNSET,
        )
        self._load(content, encode_payload(content))

    def _load(self, content: _PolicyPayload, payload: bytes) -> None:
        _check(content)
        self.threshold = content.threshold
        self.blend = content.blend
        self.audit_rate = content.audit_rate
        self.max_reasons = content.max_reasons
        self.lightgbm_version = content.lightgbm_version
        self.metadata = content.metadata
        self.audit: Audit | None = None if content.audit is msgspec.UNSET else content.audit
        self.weights: dict[str, float] = {} if content.weights is msgspec.UNSET else content.weights
        self.old_rules = content.old_rules
        self._key: bytes | None = None
        self.payload: bytes = payload
        self.digest: str = payload_digest(payload)
        self.version: str = self.digest[:VERSION_DIGITS]

    def decide(
        self,
        score: NDArray[np.float64],
        features: NDArray[np.float64],
        identity: NDArray[np.uint64],
        matched: NDArray[np.bool_] | None = None,
        blocked: NDArray[np.bool_] | None = None,
        quiet: NDArray[np.bool_] | None = None,
    ) -> PolicyDecisions:
        """Decide n transactions.

        A block list alerts by ``list``, else a score at or above the threshold by ``score``, else a rule by ``rule``,
        else the audit sample by ``audit``. A row's decision depends on nothing but that row.

        Args:
            score: Shape (n,).
            features: Shape (n, len(FEATURES)), NaN for no value.
            identity: Shape (n,), `transaction_hash` values; only those of a policy that `audits` are read.
            matched: Shape (n,), whether an active rule alerts; None: none does.
            blocked: Shape (n,), whether a block list alerts; None: none does.
            quiet: Shape (n,), whether the score alerts on nothing; None: on all.

        Raises:
            ModelError: The audit has a key, and the policy is not `keyed`.
        """
        certain = score >= self.threshold if quiet is None else (score >= self.threshold) & ~quiet
        selection: list[str | None] = [None] * len(score)
        _fill(selection, certain, BY_SCORE)
        if matched is not None:
            _fill(selection, matched & ~certain, BY_RULE)
            certain = certain | matched
        if blocked is not None:
            _fill(selection, blocked, BY_LIST)
            certain = certain | blocked
        alert = certain
        probability = np.full(len(score), self.audit_rate)
        if self.audits:
            if self.audit is not None:
                probability = self.audit.probabilities(features)
            sampled = self._audit_positions(identity) < probability
            _fill(selection, sampled & ~certain, BY_AUDIT)
            alert = certain | sampled
        return PolicyDecisions(alert, selection, np.where(certain, 1.0, probability))

    @property
    def audits(self) -> bool:
        """True if the audit may select a transaction, so that `decide` needs identities."""
        return self.audit_rate > 0.0 or self.audit is not None

    def keyed(self, keys: Mapping[str, str]) -> "Policy":
        """Return the policy with the key of its audit; raises `ModelError` where ``keys`` lack it or have another."""
        if self.audit is None or self.audit.key_id is None:
            return self
        if not keys.get(self.audit.key_id):
            raise ModelError(
                f"policy {self.version} audits with the key {self.audit.key_id!r}, which this program does not have: "
                "add it to FRAUD_PIPELINE_AUDIT_KEYS"
            )
        if self.audit.key_check not in (None, key_check(keys[self.audit.key_id])):
            raise ModelError(
                f"policy {self.version} audits with another key {self.audit.key_id!r} than this program has, which "
                "would select other transactions: put the old one back into FRAUD_PIPELINE_AUDIT_KEYS, and give the "
                "new one an id of its own"
            )
        policy = Policy.from_payload(self.payload)
        policy._key = keys[self.audit.key_id].encode()
        return policy

    @property
    def model_weights(self) -> list[float]:
        """The weight of each kind of `BESIDE` in the score; LightGBM has what is left to 1."""
        left = 1.0 - sum(self.weights.values())
        return [self.blend * left if kind is RIVER else self.weights.get(kind.name, 0.0) for kind in BESIDE]

    def _audit_positions(self, identity: NDArray[np.uint64]) -> NDArray[np.float64]:
        if self.audit is None or self.audit.key_id is None:
            return sample_positions(identity, AUDIT_SAMPLE)
        if self._key is None:
            raise ModelError(f"policy {self.version} needs the key {self.audit.key_id!r} of its audit to decide")
        return keyed_positions(identity, AUDIT_SAMPLE, self._key)

    def to_payload(self) -> bytes:
        """The policy as one JSON object; ``digest`` is its SHA-256."""
        return self.payload

    @classmethod
    def from_payload(cls, payload: bytes) -> "Policy":
        """Read a policy; raises `ModelError` when it is damaged or makes no sense."""
        content = decode_payload(payload, _PAYLOAD, "a policy", POLICY_KIND)
        policy = cls.__new__(cls)
        policy._load(content, bytes(payload))
        return policy

    def replace(self, **changes: Any) -> "Policy":
        """A policy like this one but for ``changes``, which are arguments of the class."""
        fields = {name: getattr(self, name) for name in _PolicyPayload.__struct_fields__ if name != "kind"}
        policy = Policy(**{**fields, **changes})
        if self.audit is not None and policy.audit is not None and policy.audit.key_id == self.audit.key_id:
            policy._key = self._key
        return policy


def _fill(selection: list[str | None], rows: NDArray[np.bool_], name: str) -> None:
    for row in np.flatnonzero(rows).tolist():
        selection[row] = name


def _check_weights(weights: Mapping[str, float]) -> None:
    names = {kind.name for kind in BESIDE if kind is not RIVER}
    if foreign := sorted(weights.keys() - names):
        raise ModelError(f"a policy has a weight for {foreign[0]!r}, which is no model beside LightGBM and River here")
    if not all(weight >= 0.0 for weight in weights.values()) or not sum(weights.values()) <= 1.0:
        raise ModelError("a policy's weights must be 0 or more, and at most 1 together")


def compared_features(payload: bytes) -> set[str]:
    """Return the features that rules and strata of a policy compare; raises `ModelError` for a payload that is none."""
    content = decode_payload(payload, _PAYLOAD, "a policy")
    strata = () if content.audit is msgspec.UNSET else content.audit.strata
    return {*(rule.feature for rule in content.old_rules), *(stratum.feature for stratum in strata)}


def _check(content: _PolicyPayload) -> None:
    for name, value in (("threshold", content.threshold), ("blend", content.blend), ("audit rate", content.audit_rate)):
        if not 0.0 <= value <= (LARGEST_THRESHOLD if name == "threshold" else 1.0):
            raise ModelError(f"a policy's {name} must be between 0 and 1, not {value}")
    if content.weights is not msgspec.UNSET:
        _check_weights(content.weights)
    if not 1 <= content.max_reasons <= MOST_REASONS:
        raise ModelError(
            f"an alert has at least one reason and at most {MOST_REASONS}; max_reasons is {content.max_reasons}"
        )
    if len(content.lightgbm_version or "") > _LONGEST_VERSION:
        raise ModelError(f"a policy's lightgbm_version has at most {_LONGEST_VERSION} characters")
    check_metadata(content.metadata)
    if content.audit is not msgspec.UNSET:
        if content.audit_rate:
            raise ModelError("a policy has an audit rate or an audit, not both: leave audit_rate at 0")
        check_audit(content.audit)
    if len(content.old_rules) > MOST_OLD_RULES:
        raise ModelError(f"a policy has at most {MOST_OLD_RULES} rules, not {len(content.old_rules)}")
    adopted(content.old_rules, "policy")
