"""The stories that features tell: which belong together, their codes, and the sentences."""

import math
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.features.catalogue import FEATURES, OUTLIER_RATIO, WINDOWS_US

CODES: Final[dict[str, str]] = {
    "AMOUNT_HIGH": "The amount by itself raised the score.",
    "AMOUNT_UNUSUAL_FOR_CARD": "The amount is unlike what the card usually spends.",
    "CARD_BURST": "The card has many transactions within an hour or a day, or little time between them.",
    "CARD_PATTERN": "What the card spent over days and weeks resembles that of cards with fraud.",
    "CARD_RECENT_OUTLIERS": "The card has had amounts out of its own range lately.",
    "CARD_NEW_TO_MERCHANT": "The card has not been at this merchant in its last transactions.",
    "CARD_KNOWN_AT_MERCHANT": "How often the card has been at this merchant resembles fraud.",
    "UNUSUAL_HOUR": "The time of day or the weekday.",
    "AMOUNT_UNUSUAL_FOR_MERCHANT": "The amount is unlike what the merchant usually takes.",
    "MERCHANT_SURGE": "The merchant has more traffic than usual.",
    "MERCHANT_PATTERN": "What the merchant took over days and weeks resembles that of merchants with fraud.",
    "MERCHANT_FRAUD_RUN": "Frauds are reported at this merchant, and nothing older has gone unreported since.",
    "MERCHANT_NEWEST_LABEL_FRAUD": "The newest labelled transaction at this merchant was fraud.",
    "MERCHANT_KNOWN_FRAUD": "Frauds are known at this merchant.",
    "MERCHANT_LABELS": "What is known of this merchant's transactions, without a fraud among them.",
    "ONLINE_MODEL": "The online model, from recent labels.",
    "AUDIT_SAMPLE": "Chosen at random for audit.",
}
"""Every code that a reason can have, with its meaning; rules bring their own. ``docs/models.md`` lists them."""

_AGO_UNITS: Final = ((86_400.0, "days"), (3_600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))


class Facts:
    """One transaction's features by name, and how to write them."""

    def __init__(self, row: NDArray[np.float64], currency: str) -> None:
        self._row = row
        self._currency = f" {currency}" if currency else ""

    def __getitem__(self, name: str) -> float:
        return float(self._row[_COLUMN[name]])

    def has(self, *names: str) -> bool:
        """Whether all of them have a value."""
        return not any(math.isnan(self[name]) for name in names)

    def money(self, amount: float) -> str:
        """An amount of the base currency's major unit."""
        return f"{amount:,.2f}{self._currency}"


class Telling(NamedTuple):
    """A reason without its weight."""

    code: str
    feature: str
    sentence: str
    usual: float | None = None


class Story(NamedTuple):
    """Features whose contributions are added up. ``tell`` says nothing where the values do not bear the story out."""

    code: str
    """Of what is said where ``tell`` says nothing."""
    features: tuple[str, ...]
    tell: Callable[[Facts], Telling | None]
    subject: str


def count(number: float, what: str) -> str:
    """A number of things.

    >>> count(1, "transaction"), count(12, "transaction")
    ('1 transaction', '12 transactions')
    """
    return f"{number:,.0f} {what}{'' if number == 1 else 's'}"


def ago(seconds: float) -> str:
    """A span in its largest unit.

    >>> ago(7200.0), ago(90.0)
    ('2.0 hours', '1.5 minutes')
    """
    for unit_s, name in _AGO_UNITS:
        if seconds >= unit_s:
            return f"{seconds / unit_s:.1f} {name}"
    return "less than a second"


def _amount(facts: Facts) -> Telling | None:
    if not facts.has("amount"):
        return None
    amount = facts["amount"]
    return Telling("AMOUNT_HIGH", "amount", f"The amount of {facts.money(amount)} by itself raised the score.")


def _usual_amount(facts: Facts) -> Telling | None:
    if not facts.has("card_usual_amount", "card_amount_to_usual"):
        return None
    amount, usual, ratio = facts["amount"], facts["card_usual_amount"], facts["card_amount_to_usual"]
    if ratio >= 1.2:
        compared = f"is {ratio:.1f} times this card's usual {facts.money(usual)}"
    elif ratio <= 0.8:
        compared = f"is only {ratio:.0%} of this card's usual {facts.money(usual)}"
    else:
        compared = f"is near this card's usual {facts.money(usual)}, on a card whose amounts resemble fraud"
    return Telling("AMOUNT_UNUSUAL_FOR_CARD", "card_amount_to_usual", f"{facts.money(amount)} {compared}.", usual)


def _burst(facts: Facts) -> Telling | None:
    hour, day, month = facts["card_count_1h"], facts["card_count_1d"], facts["card_count_30d"]
    usual = month / 30
    if hour >= 2:
        spent = facts.money(facts["card_sum_1h"])
        text = f"{count(hour, 'earlier transaction')} of this card within the hour, for {spent}"
        return Telling("CARD_BURST", "card_count_1h", f"{text}; it usually has {usual:.1f} a day.", usual / 24)
    if day >= 2 and day > usual:
        spent = facts.money(facts["card_sum_1d"])
        text = f"{count(day, 'earlier transaction')} of this card within a day, for {spent}"
        return Telling("CARD_BURST", "card_count_1d", f"{text}; it usually has {usual:.1f}.", usual)
    if facts.has("card_seconds_since_last") and facts["card_seconds_since_last"] < 3_600:
        text = f"Only {ago(facts['card_seconds_since_last'])} after this card's transaction before."
        return Telling("CARD_BURST", "card_seconds_since_last", text)
    return None


def _outliers(facts: Facts) -> Telling | None:
    for window, span in (("1d", "day"), ("7d", "7 days"), ("30d", "30 days")):
        outliers = facts[f"card_outlier_count_{window}"]
        if outliers >= 1:
            many = count(outliers, "transaction")
            text = f"In the last {span} this card had {many} of more than {OUTLIER_RATIO} times its usual amount"
            since = facts["card_seconds_since_outlier"]
            text += "." if math.isnan(since) else f", the last one {ago(since)} earlier."
            return Telling("CARD_RECENT_OUTLIERS", f"card_outlier_count_{window}", text)
    return None


def _new_to_merchant(facts: Facts) -> Telling | None:
    times = facts["card_merchant_count"]
    if math.isnan(times):
        return None
    if times == 0:
        text = "This card has not been at this merchant in its last transactions."
        return Telling("CARD_NEW_TO_MERCHANT", "card_merchant_count", text)
    text = f"This card was {count(times, 'time')} at this merchant in its last transactions."
    return Telling("CARD_KNOWN_AT_MERCHANT", "card_merchant_count", text)


def _hour(facts: Facts) -> Telling | None:
    if not facts.has("hour", "weekday"):
        return None
    minutes = int(facts["hour"] * 60)
    weekday = _WEEKDAYS[int(facts["weekday"]) % 7]
    text = f"At {minutes // 60:02d}:{minutes % 60:02d} on a {weekday}; the time raised the score."
    return Telling("UNUSUAL_HOUR", "hour", text)


def _merchant_amount(facts: Facts) -> Telling | None:
    if not facts.has("merchant_amount_to_mean", "merchant_mean_30d"):
        return None
    ratio, mean = facts["merchant_amount_to_mean"], facts["merchant_mean_30d"]
    text = f"{facts.money(facts['amount'])} is {ratio:.1f} times this merchant's mean of {facts.money(mean)}."
    return Telling("AMOUNT_UNUSUAL_FOR_MERCHANT", "merchant_amount_to_mean", text, mean)


def _surge(facts: Facts) -> Telling | None:
    day, usual = facts["merchant_count_1d"], facts["merchant_count_30d"] / 30
    if day < 2 or day <= usual:
        return None
    text = f"{count(day, 'transaction')} at this merchant within a day; it usually has {usual:.1f}."
    return Telling("MERCHANT_SURGE", "merchant_count_1d", text, usual)


def _merchant_labels(facts: Facts) -> Telling | None:
    known, fraud = facts["merchant_known_count_30d"], facts["merchant_known_fraud_30d"]
    share = f"{count(fraud, 'fraud')} known among {count(known, 'labelled transaction')} of 30 days at this merchant"
    if facts["merchant_unexplained_fraud_30d"] >= 1 and facts["merchant_unreported_since_fraud"] == 0:
        began = ago(facts["merchant_fraud_run_seconds"])
        text = f"{share}; they began {began} earlier, and no older transaction since has stayed without a report."
        return Telling("MERCHANT_FRAUD_RUN", "merchant_unreported_since_fraud", text)
    if fraud >= 1 and facts["merchant_newest_label"] == 1:
        return Telling("MERCHANT_NEWEST_LABEL_FRAUD", "merchant_newest_label", f"{share}, the newest of them.")
    if fraud >= 1:
        since = facts["merchant_seconds_since_fraud"]
        when = "" if math.isnan(since) else f", the last one {ago(since)} earlier"
        return Telling("MERCHANT_KNOWN_FRAUD", "merchant_known_fraud_30d", f"{share}{when}.")
    if known >= 1:
        known_text = count(known, "labelled transaction")
        text = f"{known_text} of 30 days at this merchant, no fraud among them; how many and how old raised the score."
    else:
        text = "No transaction of 30 days at this merchant has a label yet, which raised the score."
    return Telling("MERCHANT_LABELS", "merchant_known_count_30d", text)


def _nothing(facts: Facts) -> Telling | None:
    del facts
    return None


def _windows(entity: str, windows: tuple[str, ...], statistics: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{entity}_{statistic}_{window}" for window in windows for statistic in statistics)


_SHORT: Final = ("1h", "1d")
_LONG: Final = ("7d", "30d")
_SHAPE: Final = ("mean", "std", "max", "min")

STORIES: Final = (
    Story("AMOUNT_HIGH", ("amount",), _amount, "The amount"),
    Story(
        "AMOUNT_UNUSUAL_FOR_CARD",
        (
            "card_usual_amount",
            "card_amount_to_usual",
            "card_amount_deviation",
            "card_regular_mean_30d",
            "card_amount_to_regular",
            *_windows("card", tuple(WINDOWS_US), _SHAPE),
        ),
        _usual_amount,
        "The card's amounts",
    ),
    Story(
        "CARD_BURST",
        (*_windows("card", _SHORT, ("count", "sum")), "card_seconds_since_last"),
        _burst,
        "The card's rhythm",
    ),
    Story("CARD_PATTERN", _windows("card", _LONG, ("count", "sum")), _nothing, "The card's spending over weeks"),
    Story(
        "CARD_RECENT_OUTLIERS",
        ("card_outlier_count_1d", "card_outlier_count_7d", "card_outlier_count_30d", "card_seconds_since_outlier"),
        _outliers,
        "The card's range of amounts",
    ),
    Story("CARD_NEW_TO_MERCHANT", ("card_merchant_count",), _new_to_merchant, "The card at this merchant"),
    Story("UNUSUAL_HOUR", ("hour", "weekday"), _hour, "The time"),
    Story(
        "AMOUNT_UNUSUAL_FOR_MERCHANT",
        ("merchant_amount_to_mean", *_windows("merchant", tuple(WINDOWS_US), _SHAPE)),
        _merchant_amount,
        "The merchant's amounts",
    ),
    Story(
        "MERCHANT_SURGE",
        (*_windows("merchant", _SHORT, ("count", "sum")), "merchant_surge", "merchant_seconds_since_last"),
        _surge,
        "The merchant's rhythm",
    ),
    Story(
        "MERCHANT_PATTERN",
        (*_windows("merchant", _LONG, ("count", "sum")), "merchant_seconds_since_first"),
        _nothing,
        "The merchant's trade over weeks",
    ),
    Story(
        "MERCHANT_LABELS",
        (
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
        ),
        _merchant_labels,
        "What is known of the merchant",
    ),
)

_PATTERN_CODE: Final = {
    # What is said of a story whose values do not bear it out: a small amount is not high, a lone transaction no burst.
    "CARD_BURST": "CARD_PATTERN",
    "CARD_RECENT_OUTLIERS": "CARD_PATTERN",
    "AMOUNT_UNUSUAL_FOR_CARD": "CARD_PATTERN",
    "MERCHANT_SURGE": "MERCHANT_PATTERN",
    "AMOUNT_UNUSUAL_FOR_MERCHANT": "MERCHANT_PATTERN",
}


def told(story: Story, facts: Facts) -> Telling | None:
    """What the story says of this transaction, if its values bear it out."""
    return story.tell(facts)


def pattern(story: Story, strongest: str, facts: Facts) -> Telling:
    """A story in general terms, by its strongest feature."""
    value = facts[strongest]
    shown = "is unknown" if math.isnan(value) else f"is {value:,.4g}"
    text = f"{story.subject} resemble{_ending(story.subject)} fraud that the model was taught: {strongest} {shown}."
    return Telling(_PATTERN_CODE.get(story.code, story.code), strongest, text)


def _ending(subject: str) -> str:
    return "" if subject.endswith("amounts") and "range" not in subject else "s"


_WEEKDAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_COLUMN: Final = {name: column for column, name in enumerate(FEATURES)}
