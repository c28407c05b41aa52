"""Which features a training uses, by patterns of their names."""

from collections.abc import Iterable
from fnmatch import fnmatchcase

from pipeline.features.catalogue import FEATURES
from pipeline.scoring.errors import ModelError


def select_features(patterns: Iterable[str]) -> tuple[str, ...]:
    """The features that match, in the order of the catalogue.

    A pattern is a feature's name with ``*``, ``?`` and ``[...]`` as in a shell; with ``-`` before it what matches is
    taken away again. They apply one after the other, and begin with all features where there is none or the first takes
    away. Raises `ModelError` for a pattern that matches no feature, and where nothing is left.

    >>> select_features(["hour", "card_count_*", "-*d"])
    ('hour', 'card_count_1h')
    """
    patterns = [pattern.strip() for pattern in patterns]
    chosen = set(FEATURES) if not patterns or patterns[0].startswith("-") else set[str]()
    for pattern in patterns:
        matched = {name for name in FEATURES if fnmatchcase(name, pattern.removeprefix("-"))}
        if not matched:
            raise ModelError(f"{pattern!r} matches no feature; docs/features.md lists them")
        chosen = chosen - matched if pattern.startswith("-") else chosen | matched
    if not chosen:
        raise ModelError(f"{','.join(patterns)} leaves no feature to train on")
    return tuple(name for name in FEATURES if name in chosen)
