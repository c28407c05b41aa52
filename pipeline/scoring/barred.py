"""Features that no version may use, such as those that stand for a protected attribute."""

from collections.abc import Iterable
from fnmatch import fnmatchcase


def barred_among(features: Iterable[str], barred: str) -> list[str]:
    """Return the features that are barred.

    Args:
        features: Names of features.
        barred: Names and patterns, separated by commas; the setting ``barred_features``.

    >>> barred_among(["amount", "customer_age"], "customer_*, weekday")
    ['customer_age']
    """
    patterns = [pattern.strip() for pattern in barred.split(",") if pattern.strip()]
    return [name for name in features if any(fnmatchcase(name, pattern) for pattern in patterns)]
