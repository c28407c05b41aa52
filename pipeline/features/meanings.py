"""Meanings of the features in a few words for people; ``docs/features.md`` has the definitions."""

from typing import Final

from pipeline.features.catalogue import FEATURES, WINDOWS_US

_WINDOWS: Final = {"1h": "the last hour", "1d": "the last day", "7d": "the last 7 days", "30d": "the last 30 days"}
_STATISTICS: Final = {
    "count": "number of the {entity}'s transactions in {window}",
    "sum": "sum of the {entity}'s amounts in {window}",
    "mean": "mean of the {entity}'s amounts in {window}",
    "std": "standard deviation of the {entity}'s amounts in {window}",
    "max": "largest of the {entity}'s amounts in {window}",
    "min": "smallest of the {entity}'s amounts in {window}",
}
_OTHERS: Final = {
    "amount": "amount in the base currency",
    "hour": "hour of the day",
    "weekday": "day of the week",
    "card_seconds_since_last": "time since the card's last transaction",
    "card_usual_amount": "median of the card's latest 32 amounts",
    "card_amount_to_usual": "amount, as a multiple of the card's median",
    "card_amount_deviation": "distance of the amount from the card's median, in typical distances",
    "card_outlier_count_1d": "number of amounts out of the card's range in the last day",
    "card_outlier_count_7d": "number of amounts out of the card's range in the last 7 days",
    "card_outlier_count_30d": "number of amounts out of the card's range in the last 30 days",
    "card_merchant_count": "number of the card's latest 32 transactions that were at this merchant",
    "card_regular_mean_30d": "mean of the card's amounts in the last 30 days, without those out of its range",
    "card_amount_to_regular": "amount, as a multiple of the mean of the card's regular amounts in the last 30 days",
    "card_seconds_since_outlier": "time since the card's last amount out of its range",
    "merchant_seconds_since_last": "time since the merchant's last transaction",
    "merchant_amount_to_mean": "amount, as a multiple of the merchant's mean of 30 days",
    "merchant_surge": "number of the merchant's transactions of the last day, as a multiple of its daily mean",
    "merchant_known_count_14d": "number of labelled transactions of the merchant in the last 14 days",
    "merchant_known_fraud_14d": "number of known frauds of the merchant in the last 14 days",
    "merchant_known_count_30d": "number of labelled transactions of the merchant in the last 30 days",
    "merchant_known_fraud_30d": "number of known frauds of the merchant in the last 30 days",
    "merchant_fraud_risk_30d": "smoothed share of known frauds at the merchant in 30 days",
    "merchant_newest_label": "newest label at the merchant",
    "merchant_seconds_since_fraud": "time since the merchant's newest known fraud",
    "merchant_seconds_since_legitimate": "time since the merchant's newest transaction known to be legitimate",
    "merchant_unexplained_fraud_30d": "number of known frauds of the merchant in 30 days that no amount explains",
    "merchant_unreported_since_fraud": (
        "number of old enough transactions at the merchant without a report since such a fraud"
    ),
    "merchant_fraud_run_seconds": "time since the first fraud of the merchant's present run of frauds",
    "merchant_seconds_since_first": "time since the merchant's first transaction in 30 days",
}


def _meaning(name: str) -> str:
    if name in _OTHERS:
        return _OTHERS[name]
    entity, statistic, window = name.split("_")
    return _STATISTICS[statistic].format(entity=entity, window=_WINDOWS[window])


MEANINGS: Final = {name: _meaning(name) for name in FEATURES}
"""Meaning of each feature, by its name."""
assert _WINDOWS.keys() == WINDOWS_US.keys()  # noqa: S101 -- a window without words would be found by nobody else
