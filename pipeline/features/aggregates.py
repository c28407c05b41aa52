"""The aggregates that a declaration can name, and their windows."""

import re
from typing import Final, NamedTuple

from pipeline.expressions.trees import ValueKind
from pipeline.features.built_in import COUNT, NUMBER, SECONDS
from schemas.times import US_PER_DAY, US_PER_HOUR, US_PER_SECOND


class Aggregate(NamedTuple):
    """A statistic of the events of an entity in a window."""

    name: str
    code: int
    """Number in the kernel."""
    kind: ValueKind | None
    """Kind of its field; None where it needs none."""
    unit: str
    meaning: str
    """In a few words, with ``{entity}`` and ``{field}``."""
    definition: str
    """Definition in the terms of ``docs/features.md``, with ``{field}``."""
    field: str = ""
    """The field that it is of where none is named."""


COUNT_CODE: Final = 0
SUM_CODE: Final = 1
MEAN_CODE: Final = 2
STD_CODE: Final = 3
MIN_CODE: Final = 4
MAX_CODE: Final = 5
DISTINCT_CODE: Final = 6
LAST_CODE: Final = 7
FIRST_CODE: Final = 8
SHARE_CODE: Final = 9
USUAL_HOUR_CODE: Final = 10
NEW_CODE: Final = 11

_OF: Final = "of the {entity}'s transactions"


def _number(name: str, code: int, meaning: str, definition: str) -> Aggregate:
    """Return a statistic of numbers, of amounts where no field is named."""
    words = f"{meaning} {{field}} {_OF}", f"{definition} for none"
    return Aggregate(name, code, ValueKind.NUMBER, NUMBER, *words, "amount")


_DECLARED: Final = (
    Aggregate("count", COUNT_CODE, None, COUNT, f"number {_OF}", "number of transactions with a value"),
    _number("sum", SUM_CODE, "sum of", "sum of `{field}`; 0"),
    _number("mean", MEAN_CODE, "mean of", "mean of `{field}`; NaN"),
    _number("std", STD_CODE, "standard deviation of", "population standard deviation of `{field}`; NaN"),
    _number("min", MIN_CODE, "smallest", "smallest `{field}`; NaN"),
    _number("max", MAX_CODE, "largest", "largest `{field}`; NaN"),
    Aggregate(
        "distinct", DISTINCT_CODE, ValueKind.TEXT, COUNT, f"number of different values of {{field}} {_OF}",
        "number of different `{field}`, 1,000 at most",
    ),
    Aggregate(
        "seconds_since_last", LAST_CODE, None, SECONDS, "time since the last of the {entity}'s transactions",
        "`t` minus the largest event time, in seconds; NaN for none",
    ),
    Aggregate(
        "seconds_since_first", FIRST_CODE, None, SECONDS, "time since the first of the {entity}'s transactions",
        "`t` minus the smallest event time, in seconds; NaN for none",
    ),
    Aggregate("share", SHARE_CODE, None, NUMBER, f"share {_OF}", "their share of all transactions; NaN for none"),
    Aggregate(
        "usual_hour", USUAL_HOUR_CODE, ValueKind.NUMBER, NUMBER,
        "distance of the hour from that {entity}'s circular mean",
        "distance on the clock, in hours, of the hour from the circular mean of the newest 1,000 hours; NaN for none",
        "hour",
    ),
    Aggregate(
        "new", NEW_CODE, ValueKind.TEXT, NUMBER, "whether the {entity} has no transaction of the same {field}",
        "1 if no transaction has the same `{field}`, else 0; NaN without a value",
    ),
)  # fmt: skip
AGGREGATES: Final = {aggregate.name: aggregate for aggregate in _DECLARED}
AMOUNT_AGGREGATES: Final = ("sum", "mean", "std", "min", "max")
ALIASES: Final = {
    "fraud_rate": "fraud_risk",
    "unreported": "unreported_since_fraud",
    "usual": "usual_amount",
    "outlier": "outlier_count",
    "regular": "regular_mean",
    "fraud_run": "fraud_run_seconds",
}
"""Short names of built-in aggregates."""
_WINDOW: Final = re.compile("([1-9][0-9]{0,4})([mhd])")
_UNITS_US: Final = {"m": 60 * US_PER_SECOND, "h": US_PER_HOUR, "d": US_PER_DAY}
LONGEST_US: Final = 90 * US_PER_DAY


def window_us(window: str) -> int:
    """Return the length of a window, in microseconds; raises ValueError with a sentence for a text that is none.

    >>> window_us("90m")
    5400000000
    """
    found = _WINDOW.fullmatch(window)
    length_us = int(found[1]) * _UNITS_US[found[2]] if found is not None else 0
    if not 0 < length_us <= LONGEST_US:
        raise ValueError(
            f"a window is a number of minutes, hours or days up to 90 days, such as 30m, 1h or 7d; not {window[:40]!r}"
        )
    return length_us
