"""Select the features of a training by patterns of their names."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Final

from pipeline.features.catalogue import FEATURES
from pipeline.scoring.errors import ModelError

DEFAULT_FEATURES: Final = (
    "amount",
    "hour",
    "card_count_1d",
    "card_count_30d",
    "card_seconds_since_last",
    "card_outlier_count_7d",
    "card_outlier_count_30d",
    "card_merchant_count",
    "card_regular_mean_30d",
    "card_amount_to_regular",
    "card_seconds_since_outlier",
    "merchant_count_1d",
    "merchant_count_30d",
    "merchant_unexplained_fraud_30d",
    "merchant_unreported_since_fraud",
    "merchant_fraud_run_seconds",
    "merchant_seconds_since_first",
)
"""Features of a training that names no others. None of them needs a legitimate label; decision 0041 says why these."""


def select_features(patterns: Iterable[str]) -> tuple[str, ...]:
    """Return the features that match, in the order of the catalogue.

    Patterns apply one after the other. Without any, or if the first has a sign, they start from `DEFAULT_FEATURES`.

    Args:
        patterns: Names with ``*``, ``?`` and ``[...]`` as in a shell. ``-`` in front removes what matches, ``+`` or
            nothing adds it.

    Raises:
        ModelError: A pattern matches no feature, or none is left.

    >>> select_features(["hour", "card_count_*", "-*d"])
    ('hour', 'card_count_1h')
    >>> len(select_features(["+weekday"])) - len(select_features([]))
    1
    """
    patterns = [pattern.strip() for pattern in patterns]
    chosen = set(DEFAULT_FEATURES) if not patterns or patterns[0][:1] in ("-", "+") else set[str]()
    for pattern in patterns:
        matched = {name for name in FEATURES if fnmatchcase(name, pattern.lstrip("+-"))}
        if not matched:
            raise ModelError(f"{pattern!r} matches no feature; docs/features.md lists them")
        chosen = chosen - matched if pattern.startswith("-") else chosen | matched
    if not chosen:
        raise ModelError(f"{','.join(patterns)} leaves no feature to train on")
    return tuple(name for name in FEATURES if name in chosen)
