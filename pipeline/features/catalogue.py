"""The features by name, in the order in which every matrix, model and message holds them.

``docs/features.md`` defines each value; the kernel (`pipeline.features.kernel`) computes it.
"""

import hashlib
from typing import Final

from schemas.times import US_PER_DAY, US_PER_HOUR

WINDOWS_US: Final[dict[str, int]] = {
    "1h": US_PER_HOUR,
    "1d": US_PER_DAY,
    "7d": 7 * US_PER_DAY,
    "30d": 30 * US_PER_DAY,
}
LONGEST_WINDOW_US: Final = 30 * US_PER_DAY
LATENESS_US: Final = 7 * US_PER_DAY
"""Lateness behind its partition's newest event at which a transaction still finds all that its windows hold."""
HORIZON_US: Final = LONGEST_WINDOW_US + LATENESS_US
REACH_US: Final = 2 * LONGEST_WINDOW_US
"""Reach of features into the past: ``card_outlier_count_30d`` counts transactions of the
longest window, each of which was an outlier among those of its own."""
EPISODE_US: Final = US_PER_DAY
"""A case gathers a card's transactions from its first one on for this long."""
USUAL_EVENTS: Final = 32
"""The card's usual amount is taken over at most so many of its latest transactions."""
OUTLIER_MINIMUM_EVENTS: Final = 5
OUTLIER_RATIO: Final = 3
MERCHANT_OUTLIER_MINIMUM_EVENTS: Final = 10
MERCHANT_OUTLIER_RATIO: Final = 4
LABEL_MATURITY_US: Final = 7 * US_PER_DAY
"""Age from which a transaction without a known fraud counts as unreported: most reports have come by then."""
FRAUD_RUN_GAP: Final = 1
"""Mature transactions that may lie between two frauds of one run."""
FRAUD_RUN_STEPS: Final = 64
"""A run is followed back over at most so many frauds."""
RISK_PRIOR_RATE: Final = 0.01
RISK_PRIOR_STRENGTH: Final = 5.0

KERNEL_REVISION: Final = 3
"""Raised whenever a definition changes without changing a name."""

_STATISTICS = ("count", "sum", "mean", "std", "max", "min")


def _window_features(entity: str) -> tuple[str, ...]:
    return tuple(f"{entity}_{statistic}_{window}" for window in WINDOWS_US for statistic in _STATISTICS)


TRANSACTION_FEATURES: Final = ("amount", "hour", "weekday")

CARD_FEATURES: Final = (
    *TRANSACTION_FEATURES,
    *_window_features("card"),
    "card_seconds_since_last",
    "card_usual_amount",
    "card_amount_to_usual",
    "card_amount_deviation",
    "card_outlier_count_1d",
    "card_outlier_count_7d",
    "card_outlier_count_30d",
    "card_merchant_count",
    "card_regular_mean_30d",
    "card_amount_to_regular",
    "card_seconds_since_outlier",
)

MERCHANT_FEATURES: Final = (
    *_window_features("merchant"),
    "merchant_seconds_since_last",
    "merchant_amount_to_mean",
    "merchant_surge",
    "merchant_known_count_14d",
    "merchant_known_fraud_14d",
    "merchant_known_count_30d",
    "merchant_known_fraud_30d",
    "merchant_fraud_risk_30d",
    "merchant_newest_label",
    "merchant_seconds_since_fraud",
    "merchant_seconds_since_legitimate",
    "merchant_unexplained_fraud_30d",
    "merchant_unreported_since_fraud",
    "merchant_fraud_run_seconds",
    "merchant_seconds_since_first",
)

FEATURES: Final = (*CARD_FEATURES, *MERCHANT_FEATURES)

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
"""Features of a training that names no others, and of the online model. None needs a legitimate label; decision 0041
says why these."""

LEGITIMATE_LABEL_FEATURES: Final = (
    "merchant_known_count_14d",
    "merchant_known_count_30d",
    "merchant_fraud_risk_30d",
    "merchant_newest_label",
    "merchant_seconds_since_legitimate",
)
"""Features that take legitimate labels into account; all others mean the same where nobody reports legitimate ones."""

KERNEL_VERSION: Final = f"{KERNEL_REVISION}-{hashlib.sha256(' '.join(FEATURES).encode()).hexdigest()[:8]}"
