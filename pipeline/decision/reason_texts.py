"""The reason texts of features: which belong together, their codes, and the sentences."""

import math
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.features.built_in import COUNT, MONEY, MULTIPLE, NUMBER, OUTLIER_RATIO, SECONDS
from pipeline.features.catalogue import ATTRIBUTE_FEATURES, BY_NAME, DECLARED, FEATURES, SILENCE
from pipeline.features.checked_declaration import FIELD_REASON, WINDOW_REASON
from pipeline.scoring.kinds import BESIDE
from schemas.times import US_PER_DAY, US_PER_SECOND

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
    "MERCHANT_FRAUD_RUN": "Frauds are reported at this merchant, and nothing since that is old enough lacks a report.",
    "MERCHANT_NEWEST_LABEL_FRAUD": "The newest labelled transaction at this merchant was fraud.",
    "MERCHANT_KNOWN_FRAUD": "Frauds are known at this merchant.",
    "MERCHANT_LABELS": "What is known of this merchant's transactions, without a fraud among them.",
    FIELD_REASON: "Numbers that the producer sends with the transaction resemble earlier fraud.",
    WINDOW_REASON: "Features that this deployment declares resemble earlier fraud.",
    **{kind.reason.code: kind.reason.meaning for kind in BESIDE if kind.reason is not None},
    "AUDIT_SAMPLE": "Chosen at random for audit.",
    "BLOCK_LIST": "A field is on a block list.",
}
"""Every code that a reason can have, with its meaning; rules bring their own. ``docs/models.md`` lists them."""

LOW_RATIO: Final = 0.8
HIGH_RATIO: Final = 1.5
"""A quantity between these multiples of its usual value is no argument."""
_AGO_UNITS: Final = ((86_400.0, "days"), (3_600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))


class Facts:
    """The features of one transaction by name, and how to write them.

    Args:
        row: Features, shape (len(FEATURES),).
        currency: Code of the base currency.
        home_amount: Amount in the transaction's own currency, where that is another one.
    """

    def __init__(self, row: NDArray[np.float64], currency: str, home_amount: str = "") -> None:
        self._row = row
        self._currency = f" {currency}" if currency else ""
        self._home = f" ({home_amount})" if home_amount else ""

    def __getitem__(self, name: str) -> float:
        # What is not declared is not known.
        return float(self._row[_COLUMN[name]]) if name in _COLUMN else math.nan

    def has(self, *names: str) -> bool:
        """Return True if all of them have a value."""
        return not any(math.isnan(self[name]) for name in names)

    def money(self, amount: float) -> str:
        """An amount of the base currency's major unit."""
        return f"{amount:,.2f}{self._currency}"

    @property
    def amount(self) -> str:
        """The transaction's amount, in the base currency and in its own."""
        return self.money(self["amount"]) + self._home


class WordedReason(NamedTuple):
    """A reason without its weight."""

    code: str
    feature: str
    sentence: str
    usual: float | None = None
    general: bool = False
    """True if the transaction's own values are no argument: then other reasons may take its place."""


class ReasonText(NamedTuple):
    """Features whose contributions are added up. ``write`` says nothing where the values do not bear the reason out."""

    code: str
    """Reason code used where ``write`` returns nothing; features are declared with it."""
    write: Callable[[Facts], WordedReason | None]
    subject: str

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features."""
        return tuple(feature.name for feature in DECLARED if feature.reason == self.code)


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


def _amount(facts: Facts) -> WordedReason | None:
    if not facts.has("amount"):
        return None
    return WordedReason("AMOUNT_HIGH", "amount", f"The amount of {facts.amount} by itself raised the score.")


def _usual_amount(facts: Facts) -> WordedReason | None:
    usual_name, name = "card_usual_amount", "card_amount_to_usual"
    if not facts.has(usual_name, name):
        usual_name, name = "card_regular_mean_30d", "card_amount_to_regular"
    if not facts.has(usual_name, name):
        return None
    usual = facts[usual_name]
    compared = _compared(facts[name], f"this card's usual {facts.money(usual)}")
    if compared is None:
        return None
    return WordedReason("AMOUNT_UNUSUAL_FOR_CARD", name, f"{facts.amount} is {compared}.", usual)


def _burst(facts: Facts) -> WordedReason | None:
    hour, day, month = facts["card_count_1h"], facts["card_count_1d"], facts["card_count_30d"]
    usual = month / 30
    if hour >= 2 and hour > HIGH_RATIO * usual / 24:
        text = f"{count(hour, 'earlier transaction')} of this card within the hour{_spent(facts, 'card_sum_1h')}"
        return WordedReason("CARD_BURST", "card_count_1h", f"{text}; it usually has {usual:.1f} a day.", usual / 24)
    if day >= 2 and day > HIGH_RATIO * usual:
        text = f"{count(day, 'earlier transaction')} of this card within a day{_spent(facts, 'card_sum_1d')}"
        return WordedReason("CARD_BURST", "card_count_1d", f"{text}; it usually has {usual:.1f}.", usual)
    if facts.has("card_seconds_since_last") and facts["card_seconds_since_last"] < 3_600:
        text = f"Only {ago(facts['card_seconds_since_last'])} after this card's transaction before."
        return WordedReason("CARD_BURST", "card_seconds_since_last", text)
    return None


def _spent(facts: Facts, name: str) -> str:
    return f", for {facts.money(facts[name])}" if facts.has(name) else ""


def _outliers(facts: Facts) -> WordedReason | None:
    for window, span in (("1d", "day"), ("7d", "7 days"), ("30d", "30 days")):
        outliers = facts[f"card_outlier_count_{window}"]
        if outliers >= 1:
            many = count(outliers, "transaction")
            text = (
                f"In the last {span} this card had {many} of more than {OUTLIER_RATIO} times its usual amount of then"
            )
            since = facts["card_seconds_since_outlier"]
            text += "." if math.isnan(since) else f", the last one {ago(since)} earlier."
            return WordedReason("CARD_RECENT_OUTLIERS", f"card_outlier_count_{window}", text)
    return None


def _new_to_merchant(facts: Facts) -> WordedReason | None:
    times = facts["card_merchant_count"]
    if math.isnan(times):
        return None
    if times == 0:
        text = "This card has not been at this merchant in its last transactions."
        return WordedReason("CARD_NEW_TO_MERCHANT", "card_merchant_count", text)
    text = f"This card was {count(times, 'time')} at this merchant in its last transactions."
    return WordedReason("CARD_KNOWN_AT_MERCHANT", "card_merchant_count", text, general=True)


def _hour(facts: Facts) -> WordedReason | None:
    if not facts.has("hour"):
        return None
    minutes = int(facts["hour"] * 60)
    weekday = f" on a {_WEEKDAYS[int(facts['weekday']) % 7]}" if facts.has("weekday") else ""
    text = f"At {minutes // 60:02d}:{minutes % 60:02d}{weekday}; the time raised the score."
    return WordedReason("UNUSUAL_HOUR", "hour", text)


def _merchant_amount(facts: Facts) -> WordedReason | None:
    if not facts.has("merchant_amount_to_mean", "merchant_mean_30d"):
        return None
    mean = facts["merchant_mean_30d"]
    compared = _compared(facts["merchant_amount_to_mean"], f"this merchant's mean of {facts.money(mean)}")
    if compared is None:
        return None
    return WordedReason(
        "AMOUNT_UNUSUAL_FOR_MERCHANT", "merchant_amount_to_mean", f"{facts.amount} is {compared}.", mean
    )


def _surge(facts: Facts) -> WordedReason | None:
    day, usual = facts["merchant_count_1d"], facts["merchant_count_30d"] / 30
    if not (day >= 2 and day > HIGH_RATIO * usual):
        return None
    text = f"{count(day, 'transaction')} at this merchant within a day; it usually has {usual:.1f}."
    return WordedReason("MERCHANT_SURGE", "merchant_count_1d", text, usual)


def _merchant_labels(facts: Facts) -> WordedReason | None:
    known, fraud = facts["merchant_known_count_30d"], facts["merchant_known_fraud_30d"]
    share = _known_share(facts)
    if facts["merchant_unexplained_fraud_30d"] >= 1:
        for age_us, (unreported, run_seconds) in SILENCE.items():
            # Of a younger run the age says nothing.
            if facts[unreported] == 0 and facts[run_seconds] * US_PER_SECOND >= age_us:
                began, days = ago(facts[run_seconds]), age_us // US_PER_DAY
                silent = f"none since that is {days} days old lacks a report"
                text = f"{share}; the present run began {began} earlier, and {silent}."
                return WordedReason("MERCHANT_FRAUD_RUN", unreported, text)
    if math.isnan(known) or math.isnan(fraud):
        return None
    if fraud >= 1 and facts["merchant_newest_label"] == 1:
        return WordedReason(
            "MERCHANT_NEWEST_LABEL_FRAUD", "merchant_newest_label", f"{share}; the newest label is one of them."
        )
    if fraud >= 1:
        since = facts["merchant_seconds_since_fraud"]
        when = "" if math.isnan(since) else f", the last one {ago(since)} earlier"
        return WordedReason("MERCHANT_KNOWN_FRAUD", "merchant_known_fraud_30d", f"{share}{when}.")
    if known >= 1:
        text = "How many of this merchant's transactions have labels, and since when, resembles earlier fraud."
    else:
        text = "No transaction of 30 days at this merchant has a label yet, as it was in earlier fraud."
    return WordedReason("MERCHANT_LABELS", "merchant_known_count_30d", text, general=True)


def _known_share(facts: Facts) -> str:
    """Return how many frauds are known, and of how many: where only frauds are reported, of those that are old enough.

    What is younger than 7 days may have no report yet.
    """
    known, fraud = facts["merchant_known_count_30d"], facts["merchant_known_fraud_30d"]
    if math.isnan(fraud):
        unexplained = facts["merchant_unexplained_fraud_30d"]
        return f"{count(unexplained, 'fraud')} that no amount explains known at this merchant in 30 days"
    if known > fraud:
        return f"{count(fraud, 'fraud')} known among {count(known, 'labelled transaction')} of 30 days at this merchant"
    text = f"{count(fraud, 'fraud')} known at this merchant in 30 days"
    if not facts.has("merchant_count_30d", "merchant_count_7d"):
        return text
    old = count(facts["merchant_count_30d"] - facts["merchant_count_7d"], "transaction")
    return f"{text}, which has {old} of 7 to 30 days ago"


def _compared(ratio: float, usual: str) -> str | None:
    """Compare an amount with its usual value; None where the two are near each other."""
    if ratio >= HIGH_RATIO:
        return f"{ratio:,.1f} times {usual}"
    return f"only {ratio:.0%} of {usual}" if ratio <= LOW_RATIO else None


def _nothing(facts: Facts) -> WordedReason | None:
    del facts
    return None


_REASON_TEXTS: Final = (
    ReasonText("AMOUNT_HIGH", _amount, "The amount"),
    ReasonText("AMOUNT_UNUSUAL_FOR_CARD", _usual_amount, "The card's amounts"),
    ReasonText("CARD_BURST", _burst, "The card's rhythm"),
    ReasonText("CARD_PATTERN", _nothing, "The card's spending over weeks"),
    ReasonText("CARD_RECENT_OUTLIERS", _outliers, "The card's range of amounts"),
    ReasonText("CARD_NEW_TO_MERCHANT", _new_to_merchant, "The card at this merchant"),
    ReasonText("UNUSUAL_HOUR", _hour, "The time"),
    ReasonText("AMOUNT_UNUSUAL_FOR_MERCHANT", _merchant_amount, "The merchant's amounts"),
    ReasonText("MERCHANT_SURGE", _surge, "The merchant's rhythm"),
    ReasonText("MERCHANT_PATTERN", _nothing, "The merchant's trade over weeks"),
    ReasonText("MERCHANT_LABELS", _merchant_labels, "What is known of the merchant"),
    ReasonText(FIELD_REASON, _nothing, "What the producer sends"),
    ReasonText(WINDOW_REASON, _nothing, "What is declared"),
)
REASON_TEXTS: Final = tuple(text for text in _REASON_TEXTS if text.features)
"""Those of which a feature is declared."""

_PATTERN_CODE: Final = {
    # The text of a reason whose values do not bear it out: a small amount is not high, a lone transaction no burst.
    "CARD_BURST": "CARD_PATTERN",
    "CARD_RECENT_OUTLIERS": "CARD_PATTERN",
    "AMOUNT_UNUSUAL_FOR_CARD": "CARD_PATTERN",
    "MERCHANT_SURGE": "MERCHANT_PATTERN",
    "AMOUNT_UNUSUAL_FOR_MERCHANT": "MERCHANT_PATTERN",
}


def pattern(reason: ReasonText, strongest: str, facts: Facts) -> WordedReason:
    """Write a reason in general terms, by its strongest feature.

    Args:
        reason: The reason, of which the subject and the code are used.
        strongest: Name of the feature of the reason that raised the score most.
        facts: Features of the transaction.
    """
    resemble = "resemble" if reason.subject.endswith("amounts") else "resembles"
    meaning = BY_NAME[strongest].meaning
    text = f"{reason.subject} {resemble} earlier fraud, most of all the {meaning}{_value(strongest, facts)}."
    return WordedReason(_PATTERN_CODE.get(reason.code, reason.code), strongest, text, general=True)


def _value(name: str, facts: Facts) -> str:
    """Return the value of a feature as people write it, in brackets; nothing for a unit without a form of its own."""
    value = facts[name]
    if math.isnan(value):
        return " (none)" if name in ATTRIBUTE_FEATURES else " (none yet)"
    write = _WRITTEN.get(BY_NAME[name].unit)
    return "" if write is None else f" ({write(facts, value)})"


_WRITTEN: Final[dict[str, Callable[[Facts, float], str]]] = {
    SECONDS: lambda _, value: ago(value),
    MONEY: Facts.money,
    MULTIPLE: lambda _, value: f"{value:,.1f}",
    COUNT: lambda _, value: f"{value:,.0f}",
    NUMBER: lambda _, value: f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.4g}",
}
_WEEKDAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_COLUMN: Final = {name: column for column, name in enumerate(FEATURES)}
