"""Numbers as options of commands take them."""

import math

import click


class FiniteRange(click.FloatRange):
    """A range of numbers that leaves out ``inf`` and ``nan``, which click lets pass."""

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return a finite number of the range."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is no finite number", param, ctx)
        return number
