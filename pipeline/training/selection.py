"""Select the features of a training by patterns of their names."""

from collections.abc import Iterable
from fnmatch import fnmatchcase

from pipeline.features.catalogue import DEFAULT_FEATURES, FEATURES
from pipeline.features.declaration import BUILT_IN
from pipeline.models.recipes import barred_among
from pipeline.scoring.errors import ModelError


def refuse_barred(features: Iterable[str], barred: str) -> None:
    """Refuse features that no version may be trained on.

    Args:
        features: The features of a training.
        barred: Names and patterns, separated by commas; the setting ``barred_features``.

    Raises:
        ModelError: Some of them are barred.

    >>> refuse_barred(["amount", "hour"], "customer_*, weekday")
    """
    if found := barred_among(features, barred):
        without = ",".join(f"-{name}" for name in found)
        raise ModelError(
            f"FRAUD_PIPELINE_BARRED_FEATURES bars {', '.join(found)}: leave them out with --features '{without}', or "
            "change the setting"
        )


def select_features(patterns: Iterable[str], base: Iterable[str] = DEFAULT_FEATURES) -> tuple[str, ...]:
    """Return the features that match, in the order of the catalogue.

    Patterns apply one after the other. Without any, or if the first has a sign, they start from ``base``.

    Args:
        patterns: Names with ``*``, ``?`` and ``[...]`` as in a shell. ``-`` in front removes what matches, ``+`` or
            nothing adds it.
        base: Features to start from.

    Raises:
        ModelError: A pattern matches no feature, or none is left.

    >>> select_features(["hour", "card_count_*", "-*d"])
    ('hour', 'card_count_1h')
    >>> len(select_features(["+weekday"])) - len(select_features([]))
    1
    """
    patterns = [pattern.strip() for pattern in patterns]
    chosen = set(base) if not patterns or patterns[0][:1] in ("-", "+") else set[str]()
    for pattern in patterns:
        matched = {name for name in FEATURES if fnmatchcase(name, pattern.lstrip("+-"))}
        if not matched:
            if pattern.lstrip("+-") in BUILT_IN:
                raise ModelError(f"{pattern!r} is built in, and not declared: declare it (docs/declaring-features.md)")
            raise ModelError(f"{pattern!r} matches no feature; docs/features.md lists them")
        chosen = chosen - matched if pattern.startswith("-") else chosen | matched
    if not chosen:
        raise ModelError(f"{','.join(patterns)} leaves no feature to train on")
    return tuple(name for name in FEATURES if name in chosen)
