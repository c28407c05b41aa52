"""Recipes of versions: features, hyperparameters and label handling, by digest; and features that none may have."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final

from pipeline.decision.policy import FIRST_BLEND, Policy
from pipeline.models.description import Facts

LABEL_HANDLING: Final = "label_handling"
"""The key of a version's metadata: ``early_reports`` and ``maturity_days``, where a proposal has set them."""
TREELESS: Final = "cold_start"
"""The key of the metadata of a version without trees."""
RECIPE: Final = "recipe"
"""The figure of a proposal that has its recipe's digest."""
AGAINST_RECIPE: Final = "against_recipe"
"""The figure that has the digest of the recipe that was active."""
ABSENT_HYPERPARAMETERS: Final = {"half_life_days": 0.0, "pilot_trees": 0}
"""Hyperparameters of versions that do not name them: earlier releases knew no others."""
_NO_RECIPE: Final = frozenset({"threads", "seed"})
"""Settings of a training that another recipe does not follow from."""


def recipe_digest(training: Mapping[str, Any], features: Sequence[str], handling: Mapping[str, Any]) -> str:
    """Return the first 16 digits of the SHA-256 of a recipe.

    Args:
        training: Hyperparameters.
        features: Features that trees may ask for.
        handling: How labels are taken; what is None is left out.

    >>> one = recipe_digest({"leaves": 15, "seed": 1}, ["amount", "hour"], {"maturity_days": None})
    >>> one == recipe_digest({"leaves": 15, "seed": 2}, ["hour", "amount"], {})
    True
    """
    parts = (
        {
            name: value
            for name, value in training.items()
            if name not in _NO_RECIPE and ABSENT_HYPERPARAMETERS.get(name) != value
        },
        sorted(features),
        {name: value for name, value in handling.items() if value is not None},
    )
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def inherited(policy: Policy, metadata: Mapping[str, Any]) -> Policy:
    """Return the policy that a new version takes over from the one before it.

    The online model scores alone beside a version without trees. What it learned there would count twice beside trees,
    so that it is left out until its gate lets it in. ``metadata`` are those of the version before.
    """
    return policy.replace(blend=FIRST_BLEND) if TREELESS in metadata else policy


def recipe_of_facts(facts: Facts) -> str:
    """Return the digest of a LightGBM version's recipe, from `pipeline.models.description.lightgbm_facts`."""
    return recipe_digest(facts["hyperparameters"], facts["features"], facts.get(LABEL_HANDLING, {}))


def barred_among(features: Iterable[str], barred: str) -> list[str]:
    """Return the features that no version may use, such as those that stand for a protected attribute.

    Args:
        features: Names of features.
        barred: Names and patterns, separated by commas; the setting ``barred_features``.

    >>> barred_among(["amount", "customer_age"], "customer_*, weekday")
    ['customer_age']
    """
    patterns = [pattern.strip() for pattern in barred.split(",") if pattern.strip()]
    return [name for name in features if any(fnmatchcase(name, pattern) for pattern in patterns)]
