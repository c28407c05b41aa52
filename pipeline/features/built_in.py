"""The built-in features: their kernels compute them all, and a declaration chooses among them (`catalogue`).

The kernels write them by these names (`CARD`, `MERCHANT`); ``docs/features.md`` shows the definitions, and the
reason texts of an alert follow from ``reason``, ``unit`` and ``meaning``.
"""

from collections import namedtuple
from collections.abc import Iterator
from itertools import chain
from typing import Any, Final, NamedTuple

from schemas.times import US_PER_DAY, US_PER_HOUR

WINDOWS_US: Final[dict[str, int]] = {
    "1h": US_PER_HOUR,
    "1d": US_PER_DAY,
    "7d": 7 * US_PER_DAY,
    "30d": 30 * US_PER_DAY,
}
MONTH_US: Final = 30 * US_PER_DAY
"""The longest window of built-in features."""
LATENESS_US: Final = 7 * US_PER_DAY
"""Lateness behind its partition's newest event at which a transaction still finds all that its windows hold."""
CASE_RETENTION_US: Final = MONTH_US + LATENESS_US
"""Time behind its partition's newest event after which a card's case is forgotten."""
EPISODE_US: Final = US_PER_DAY
"""A case gathers a card's transactions from its first one on for this long."""
USUAL_EVENTS: Final = 32
"""The card's usual amount is taken over at most so many of its latest transactions."""
OUTLIER_MINIMUM_EVENTS: Final = 5
OUTLIER_RATIO: Final = 3
MERCHANT_OUTLIER_MINIMUM_EVENTS: Final = 10
MERCHANT_OUTLIER_RATIO: Final = 4
SILENCE_AGES_US: Final[dict[str, int]] = {"2d": 2 * US_PER_DAY, "": 7 * US_PER_DAY, "14d": 14 * US_PER_DAY}
"""Ages from which a transaction without a known fraud counts as unreported, by the suffix of their features.

Most reports should have come by then. How long they take differs, and trees find out which age tells most: decision
0071.
"""
FRAUD_RUN_GAP: Final = 1
"""Mature transactions that may lie between two frauds of one run."""
FRAUD_RUN_STEPS: Final = 64
"""A run is followed back over at most so many frauds."""
RISK_PRIOR_RATE: Final = 0.01
RISK_PRIOR_STRENGTH: Final = 5.0

KERNEL_REVISION: Final = 3
"""Raised whenever a definition changes without changing a name."""

STATISTICS: Final = ("count", "sum", "mean", "std", "max", "min")
"""Statistics of each window, in the order of their columns."""

MONEY: Final = "money"
"""Major units of the base currency."""
COUNT: Final = "count"
SECONDS: Final = "seconds"
MULTIPLE: Final = "multiple"
NUMBER: Final = "number"


class Feature(NamedTuple):
    """The declaration of a feature."""

    entity: str
    """``transaction``, ``card`` or ``merchant``: whose history it looks at."""
    aggregate: str
    """Statistic of the history."""
    unit: str
    meaning: str
    """In a few words for people."""
    definition: str
    """Definition in the terms of ``docs/features.md``."""
    reason: str
    """The reason text that it belongs to, by the code of `pipeline.decision.reason_texts.ReasonText`."""
    window: str = ""
    """A span such as ``7d``; empty where the aggregate has none."""
    topic: str = ""
    """Part of ``docs/features.md``; empty for the part of its entity."""
    legitimate_labels: bool = False
    """Takes legitimate labels into account; others mean the same where nobody reports legitimate ones."""

    @property
    def name(self) -> str:
        """The name in models, messages and settings."""
        entity = "" if self.entity == "transaction" else self.entity
        return "_".join(part for part in (entity, self.aggregate, self.window) if part)


class _Statistic(NamedTuple):
    unit: str
    meaning: str
    definition: str


_STATISTICS: Final = {
    "count": _Statistic(COUNT, "number of the {}'s transactions", "number of transactions in the window"),
    "sum": _Statistic(MONEY, "sum of the {}'s amounts", "sum of their amounts; 0 for an empty window"),
    "mean": _Statistic(MONEY, "mean of the {}'s amounts", "sum / count; NaN for an empty window"),
    "std": _Statistic(
        MONEY,
        "standard deviation of the {}'s amounts",
        "population standard deviation; 0 for one transaction, NaN for an empty window",
    ),
    "max": _Statistic(MONEY, "largest of the {}'s amounts", "largest amount; NaN for an empty window"),
    "min": _Statistic(MONEY, "smallest of the {}'s amounts", "smallest amount; NaN for an empty window"),
}
_SPANS: Final = {
    "1h": "the last hour", "1d": "the last day", "7d": "the last 7 days", "14d": "the last 14 days",
    "30d": "the last 30 days",
}  # fmt: skip


def _windows(entity: str, amounts: str, short: str, long: str) -> Iterator[Feature]:
    """Yield the features of an entity's windows.

    Args:
        entity: ``card`` or ``merchant``.
        amounts: Reason that the sizes of amounts belong to.
        short: Reason of numbers and sums within a day.
        long: Reason of those over a week or more.
    """
    for window, length_us in WINDOWS_US.items():
        for aggregate in STATISTICS:
            unit, meaning, definition = _STATISTICS[aggregate]
            rhythm = short if length_us <= US_PER_DAY else long
            yield Feature(
                entity,
                aggregate,
                unit,
                f"{meaning.format(entity)} in {_SPANS[window]}",
                definition,
                rhythm if aggregate in ("count", "sum") else amounts,
                window,
                "windows",
            )


def _seconds_since_last(entity: str, reason: str) -> Feature:
    return Feature(
        entity, "seconds_since_last", SECONDS, f"time since the {entity}'s last transaction",
        "`t` minus the largest event time in the history, in seconds; NaN for an empty history",
        reason, topic="windows",
    )  # fmt: skip


def _outlier_counts() -> Iterator[Feature]:
    for window in ("1d", "7d", "30d"):
        yield Feature(
            "card", "outlier_count", COUNT, f"number of amounts out of the card's range in {_SPANS[window]}",
            "transactions in the window that were *outliers* when they were profiled: their own `usual` held at least "
            "5 transactions and their amount was more than 3 times its median",
            "CARD_RECENT_OUTLIERS", window,
        )  # fmt: skip


def _known_counts() -> Iterator[Feature]:
    for window in ("14d", "30d"):
        yield Feature(
            "merchant", "known_count", COUNT, f"number of labelled transactions of the merchant in {_SPANS[window]}",
            "number of transactions in `known(x, W)`",
            "MERCHANT_LABELS", window, "labels", legitimate_labels=True,
        )  # fmt: skip
        yield Feature(
            "merchant", "known_fraud", COUNT, f"number of known frauds of the merchant in {_SPANS[window]}",
            "those of which `fraud` is known",
            "MERCHANT_LABELS", window, "labels",
        )  # fmt: skip


def _silence(window: str, days: int) -> tuple[Feature, Feature]:
    """Return the number that went unreported and the time since the run began, by transactions of an age."""
    return (
        Feature(
            "merchant", "unreported_since_fraud", COUNT,
            f"number of transactions at the merchant, {days} days old or older, without a report since such a fraud",
            "mature transactions later than the newest unexplained fraud of `known(x, 30 d)`; NaN if there is none",
            "MERCHANT_LABELS", window, "silence",
        ),
        Feature(
            "merchant", "fraud_run_seconds", SECONDS,
            f"time since the first fraud of the merchant's present run of frauds, by transactions {days} days old",
            "`t` minus the event time of the first fraud of the run, in seconds; NaN if there is none",
            "MERCHANT_LABELS", window, "silence",
        ),
    )  # fmt: skip


_SILENCE: Final = {age_us: _silence(window, age_us // US_PER_DAY) for window, age_us in SILENCE_AGES_US.items()}
SILENCE_FEATURES: Final = {age_us: (unreported.name, run.name) for age_us, (unreported, run) in _SILENCE.items()}
"""Names by age: the number that went unreported, and the time since the run began."""


BUILT_IN_CARD: Final = (
    Feature("transaction", "amount", MONEY, "amount in the base currency", "`a / 100`", "AMOUNT_HIGH"),
    Feature(
        "transaction", "hour", "hour", "hour of the day",
        "hours since midnight, with fraction, of the event time in UTC; where the producer gives `local_time`, of that",
        "UNUSUAL_HOUR",
    ),
    Feature(
        "transaction", "weekday", "weekday", "day of the week", "0 (Monday) to 6 (Sunday), of the same time",
        "UNUSUAL_HOUR",
    ),
    *_windows("card", "AMOUNT_UNUSUAL_FOR_CARD", "CARD_BURST", "CARD_PATTERN"),
    _seconds_since_last("card", "CARD_BURST"),
    Feature(
        "card", "usual_amount", MONEY, "median of the card's latest 32 amounts",
        "the median amount of `usual(x)` (mean of the middle two for an even number); NaN if it is empty",
        "AMOUNT_UNUSUAL_FOR_CARD",
    ),
    Feature(
        "card", "amount_to_usual", MULTIPLE, "amount, as a multiple of the card's median",
        "amount / `card_usual_amount`; NaN if that is NaN or 0",
        "AMOUNT_UNUSUAL_FOR_CARD",
    ),
    Feature(
        "card", "amount_deviation", "deviations", "distance of the amount from the card's median, in typical distances",
        "(amount - median) / max(1.4826 x MAD, 0.1 x median), where MAD is the median of the absolute distances of "
        "`usual(x)` from its median; NaN if the median is NaN or the divisor is 0",
        "AMOUNT_UNUSUAL_FOR_CARD",
    ),
    *_outlier_counts(),
    Feature(
        "card", "merchant_count", COUNT, "number of the card's latest 32 transactions that were at this merchant",
        "transactions in `usual(x)` at the merchant of `x`",
        "CARD_NEW_TO_MERCHANT",
    ),
    Feature(
        "card", "regular_mean", MONEY,
        "mean of the card's amounts in the last 30 days, without those out of its range",
        "mean amount of the transactions of the history that were not outliers when they were profiled; NaN if there "
        "are none",
        "AMOUNT_UNUSUAL_FOR_CARD", "30d",
    ),
    Feature(
        "card", "amount_to_regular", MULTIPLE,
        "amount, as a multiple of the mean of the card's regular amounts in the last 30 days",
        "amount / `card_regular_mean_30d`; NaN if that is NaN or 0",
        "AMOUNT_UNUSUAL_FOR_CARD",
    ),
    Feature(
        "card", "seconds_since_outlier", SECONDS, "time since the card's last amount out of its range",
        "`t` minus the largest event time of an outlier in the history, in seconds; NaN if there is none",
        "CARD_RECENT_OUTLIERS",
    ),
)  # fmt: skip

BUILT_IN_MERCHANT: Final = (
    *_windows("merchant", "AMOUNT_UNUSUAL_FOR_MERCHANT", "MERCHANT_SURGE", "MERCHANT_PATTERN"),
    _seconds_since_last("merchant", "MERCHANT_SURGE"),
    Feature(
        "merchant", "amount_to_mean", MULTIPLE, "amount, as a multiple of the merchant's mean of 30 days",
        "amount / `merchant_mean_30d`; NaN if that is NaN or 0",
        "AMOUNT_UNUSUAL_FOR_MERCHANT",
    ),
    Feature(
        "merchant", "surge", MULTIPLE,
        "number of the merchant's transactions of the last day, as a multiple of its daily mean",
        "`merchant_count_1d` / (`merchant_count_30d` / 30); NaN if the latter is 0",
        "MERCHANT_SURGE",
    ),
    *_known_counts(),
    Feature(
        "merchant", "fraud_risk", "rate", "smoothed share of known frauds at the merchant in 30 days",
        "(known fraud 30 d + 5 x 0.01) / (known count 30 d + 5): a smoothed rate",
        "MERCHANT_LABELS", "30d", "labels", legitimate_labels=True,
    ),
    Feature(
        "merchant", "newest_label", "label", "newest label at the merchant",
        "1 if `fraud`, 0 if `legitimate` is known of the transaction of `known(x, 30 d)` with the largest event time "
        "(of the same instant, the one first labelled later); NaN if there is none",
        "MERCHANT_LABELS", topic="labels", legitimate_labels=True,
    ),
    Feature(
        "merchant", "seconds_since_fraud", SECONDS, "time since the merchant's newest known fraud",
        "`t` minus the largest event time in `known(x, 30 d)` with fraud known, in seconds; NaN if there is none",
        "MERCHANT_LABELS", topic="labels",
    ),
    Feature(
        "merchant", "seconds_since_legitimate", SECONDS,
        "time since the merchant's newest transaction known to be legitimate",
        "the same for legitimate",
        "MERCHANT_LABELS", topic="labels", legitimate_labels=True,
    ),
    Feature(
        "merchant", "unexplained_fraud", COUNT,
        "number of known frauds of the merchant in 30 days that no amount explains",
        "unexplained frauds in `known(x, 30 d)`",
        "MERCHANT_LABELS", "30d", "silence",
    ),
    *chain.from_iterable(_SILENCE.values()),
    Feature(
        "merchant", "seconds_since_first", SECONDS, "time since the merchant's first transaction in 30 days",
        "`t` minus the smallest event time in the history, in seconds; NaN for an empty history",
        "MERCHANT_PATTERN",
    ),
)  # fmt: skip


def columns_of(kind: str, names: tuple[str, ...], first: int = 0) -> Any:
    """Return the column of each name as an attribute. Numba reads attributes of a named tuple as constants.

    Args:
        kind: Name of the tuple's class.
        names: Names of the columns.
        first: The first column.
    """
    return namedtuple(kind, names)(*range(first, first + len(names)))


CARD: Final = columns_of("CardColumns", tuple(feature.name for feature in BUILT_IN_CARD))
"""Columns of a row of built-in features of cards."""
MERCHANT: Final = columns_of("MerchantColumns", tuple(feature.name for feature in BUILT_IN_MERCHANT))
"""Columns of a row of built-in features of merchants."""
