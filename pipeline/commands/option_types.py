"""Numbers, times and durations as options of commands take them."""

import math
from datetime import UTC, datetime
from typing import Final

import click

_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}


class Duration(click.ParamType):
    """Seconds, or a number with a unit: ``90``, ``30m``, ``12h``, ``7d``."""

    name = "duration"

    def __init__(self, unit_s: int = 1) -> None:
        """``unit_s`` is the unit of values, in seconds."""
        self._unit_s = unit_s

    def text(self, value: float) -> str:
        """Write a value as people do.

        >>> Duration().text(5_400), Duration(86_400).text(7.0)
        ('90m', '7d')
        """
        unit = max((unit for unit, size in _UNITS.items() if value * self._unit_s % size == 0), key=_UNITS.__getitem__)
        return f"{value * self._unit_s / _UNITS[unit]:g}{unit}"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return a duration in the unit.

        Args:
            value: Text of the option, or a number of seconds.
            param: Named by the error.
            ctx: Shown with the error.
        """
        text = str(value).strip().lower()
        number, unit = (text[:-1], _UNITS[text[-1]]) if text[-1:] in _UNITS else (text, 1.0)
        try:
            seconds = float(number) * unit
        except ValueError:
            self.fail(f"{value!r} is no duration; write 90, 30m, 12h or 7d", param, ctx)
        if not 0 <= seconds < math.inf:
            self.fail(f"{value!r} is negative or without end; write 90, 30m, 12h or 7d", param, ctx)
        return seconds / self._unit_s


class Moment(click.ParamType):
    """An ISO 8601 date or time; without an offset it is UTC."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Return an aware time.

        Args:
            value: Text of the option, or its default.
            param: Named by the error.
            ctx: Shown with the error.
        """
        try:
            moment = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!r} is no time; write 2018-04-01 or 2018-04-01T12:00:00+02:00", param, ctx)
        return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


class FiniteRange(click.FloatRange):
    """A range of numbers that leaves out ``inf`` and ``nan``, which click lets pass."""

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return a finite number of the range.

        Args:
            value: Text of the option, or its default.
            param: Named by the error.
            ctx: Shown with the error.
        """
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is no finite number", param, ctx)
        return number
