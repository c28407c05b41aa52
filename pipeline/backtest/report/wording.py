"""How figures are written, on the page and in the terminal."""

from typing import Final

from pipeline.backtest.bootstrap import Interval
from pipeline.backtest.report.content import Content, Metric

NONE: Final = "n/a"


def number(value: float | None, decimals: int = 0) -> str:
    """With thousands apart; `NONE` where there is none.

    >>> number(1234.5, 1), number(None)
    ('1,234.5', 'n/a')
    """
    return NONE if value is None else f"{value:,.{decimals}f}"


def ratio(value: float | None) -> str:
    """A share or an area, to three decimals."""
    return number(value, 3)


def percent(value: float | None) -> str:
    """A share of a hundred, to one decimal."""
    return NONE if value is None else f"{value:.1%}"


def moment(time: str) -> str:
    """A time of UTC as people write it.

    >>> moment("2018-07-15T07:31:38Z")
    '2018-07-15 07:31:38'
    """
    return time.replace("T", " ").removesuffix("Z")


def score(value: float) -> str:
    """A score, small ones to two digits.

    >>> score(0.5), score(0.00012)
    ('0.500', '0.00012')
    """
    return f"{value:.3f}" if value >= 0.01 or value == 0 else f"{value:.2g}"


def figure(metric: Metric) -> str:
    """A metric's value in its unit."""
    return _written(metric.value, metric.unit)


def between(interval: Interval | None, metric: Metric) -> str:
    """An interval of a metric."""
    if interval is None:
        return NONE
    return f"{_written(interval.low, metric.unit)} to {_written(interval.high, metric.unit)}"


def wider(metric: Metric) -> Interval | None:
    """Of the intervals of a metric the one that promises less."""
    known = [one for one in (metric.by_days, metric.by_cards) if one is not None]
    return max(known, key=lambda one: (one.high or 0.0) - (one.low or 0.0), default=None)


def _written(value: float | None, unit: str) -> str:
    return {"amount": number(value), "a day": number(value, 1)}.get(unit, ratio(value))


def partial_sentence(content: Content) -> str:
    """What an interrupted replay is to be read as."""
    return (
        f"Partial: the replay was interrupted. It covers {content.from_time} to {content.until_time}, of a range that "
        f"goes to {content.to_time}."
    )
