"""The audit slice of a policy: which transactions are looked at although neither score nor rule asks for it."""

import hashlib
import math
from collections.abc import Mapping
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.features.catalogue import FEATURES
from pipeline.scoring.errors import ModelError

MOST_STRATA: Final = 20
LONGEST_KEY_ID: Final = 100
"""Characters."""
_COMPARISONS: Final = {
    ">": np.greater,
    ">=": np.greater_equal,
    "<": np.less,
    "<=": np.less_equal,
    "==": np.equal,
    "!=": np.not_equal,
}


class Stratum(msgspec.Struct, frozen=True, kw_only=True):
    """Transactions that are audited more often: those where ``feature`` ``op`` ``value`` holds."""

    feature: str
    op: str
    """``>``, ``>=``, ``<``, ``<=``, ``==`` or ``!=``."""
    value: float
    rate: float
    """Share of them to audit, 0 to 1."""


class Audit(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A random sample of all transactions, and larger ones of some strata.

    A transaction is audited with the highest rate of those that apply to it. It is one draw: what is selected at one
    rate is selected at every higher one.

    >>> audit = Audit(rate=0.01, strata=(Stratum(feature="amount", op=">", value=500.0, rate=0.2),))
    >>> features = np.zeros((2, 81))
    >>> features[1, 0] = 900.0
    >>> audit.probabilities(features).tolist()
    [0.01, 0.2]
    """

    rate: float
    """Share of all transactions to audit, above 0: without it nothing could be said about the others."""
    key_id: str | None = None
    """Names the key of the sample's order; without one, anybody who knows this program can compute who is audited."""
    key_check: str | None = None
    """`key_check` of that key: another one under the same id would select others in a replay, and is refused."""
    strata: tuple[Stratum, ...] = ()

    def probabilities(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the probability of being audited; shape (n,) for features of shape (n, len(FEATURES))."""
        found = np.full(len(features), self.rate)
        for stratum in self.strata:
            column = features[:, FEATURES.index(stratum.feature)]
            # A missing value is in no stratum.
            inside = _COMPARISONS[stratum.op](column, stratum.value) & ~np.isnan(column)
            found[inside] = np.maximum(found[inside], stratum.rate)
        return found


def key_check(key: str) -> str:
    """Return by what a policy recognises the key of its audit; a random key cannot be derived from it."""
    return hashlib.blake2b(key.encode(), digest_size=8, person=b"audit-key").hexdigest()


def with_key(audit: Audit, key_id: str | None, keys: Mapping[str, str]) -> Audit:
    """Return an audit that is ordered by one of the keys of the setting ``audit_keys``.

    Args:
        audit: Its rates and strata; a key that it names is replaced.
        key_id: Name of the key; None is refused.
        keys: All keys by name.

    Raises:
        ModelError: No key is named, or it is not among ``keys``.
    """
    if key_id is None:
        raise ModelError(
            "without a key anybody who knows this program can tell which transactions escape the audit: add one to "
            "FRAUD_PIPELINE_AUDIT_KEYS, and name it with --audit-key-id"
        )
    if not keys.get(key_id):
        raise ModelError(f"FRAUD_PIPELINE_AUDIT_KEYS has no key {key_id!r}: add it here and at all workers")
    return msgspec.structs.replace(audit, key_id=key_id, key_check=key_check(keys[key_id]))


def check_audit(audit: Audit) -> None:
    """Raise `ModelError` where an audit makes no sense."""
    if not 0.0 < audit.rate <= 1.0:
        raise ModelError(f"an audit's rate must be above 0 and at most 1, not {audit.rate}")
    if len(audit.strata) > MOST_STRATA:
        raise ModelError(f"an audit has at most {MOST_STRATA} strata, not {len(audit.strata)}")
    if audit.key_id is not None and not 0 < len(audit.key_id) <= LONGEST_KEY_ID:
        raise ModelError(f"an audit's key_id has 1 to {LONGEST_KEY_ID} characters")
    for stratum in audit.strata:
        if stratum.feature not in FEATURES:
            raise ModelError(f"an audit's stratum names {stratum.feature!r}, which is no feature; see docs/features.md")
        if stratum.op not in _COMPARISONS:
            raise ModelError(f"an audit's stratum compares with {stratum.op!r}; use one of {', '.join(_COMPARISONS)}")
        if not math.isfinite(stratum.value):
            raise ModelError(f"an audit's stratum compares with {stratum.value}, which is no number")
        if not 0.0 <= stratum.rate <= 1.0:
            raise ModelError(f"the rate of an audit's stratum must be between 0 and 1, not {stratum.rate}")
