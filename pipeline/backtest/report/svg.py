"""Plots as SVG text: bars, stacked bars and lines, readable on a light page and on a dark one. Pure functions.

The colours follow the palette of Okabe and Ito, made for any colour vision, darkened until each has a contrast of 4.5
against the plot's own background; lines differ in dash and marker too.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

WIDTH: Final = 760
BACKGROUND: Final = "#ffffff"
INK: Final = "#1f2328"
QUIET_INK: Final = "#57606a"
GRID: Final = "#d8dee4"
QUIET: Final = -1
"""In place of a colour's number: what others are compared with."""
COLOURS: Final = ("#0067a3", "#a34700", "#00735a", "#98497b", "#5c5c00", "#8a2be2", "#57606a")
DASHES: Final = ("", "7 4", "2 3", "10 3 2 3")
FONT: Final = 13
SMALL: Final = 12
LETTER: Final = 0.62
"""A letter's width by its height: more than most letters take, so that labels have room."""
CAPITAL: Final = 0.76
LEFT, RIGHT, BOTTOM = 84, 24, 52
LINES_HEIGHT: Final = 274
BAR, BAR_GAP = 22, 10


@dataclass(frozen=True)
class Bar:
    """A bar of a chart; ``text`` stands at its end."""

    label: str
    value: float
    text: str
    number: int = QUIET
    """Index of the colour."""


@dataclass(frozen=True)
class Series:
    """A line of a chart."""

    name: str
    points: tuple[tuple[float, float], ...]
    markers: bool = True
    """True if each point is marked; too much where they are many."""
    number: int | None = None
    """Index of colour, dash and marker; by default the line's position."""


def bars(title: str, rows: Sequence[Bar], *, alt: str = "") -> str:
    """Horizontal bars from 0 on.

    Args:
        title: Heading of the plot.
        rows: At least one bar; they are drawn from top to bottom.
        alt: Describes what the bars show to those who do not see them; empty for no description.

    Returns:
        SVG text, `WIDTH` pixels wide.
    """
    left = 20 + _width_of(max((row.label for row in rows), key=len))
    room = WIDTH - left - RIGHT - _width_of(max((row.text for row in rows), key=len)) - 8
    largest = max(row.value for row in rows) or 1.0
    parts, y = [], 52.0
    for row in rows:
        width = max(1.0, room * row.value / largest)
        middle = y + BAR / 2 + 4
        parts += [
            _text(left - 8, middle, row.label, anchor="end"),
            f'<rect x="{left:.1f}" y="{y:.1f}" width="{width:.1f}" height="{BAR}" fill="{_colour(row.number)}"/>',
            _text(left + width + 6, middle, row.text),
        ]
        y += BAR + BAR_GAP
    return _svg(title, y + 12, parts, alt)


def stacked(title: str, unit: str, rows: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> str:
    """Horizontal bars that are made of parts; all rows have the same parts, in the same order."""
    left = 20 + _width_of(max((label for label, _ in rows), key=len))
    largest = max(sum(value for _, value in split) for _, split in rows)
    totals = [f"{sum(value for _, value in split):.3g} {unit}" for _, split in rows]
    room = WIDTH - left - RIGHT - _width_of(max(totals, key=len)) - 8
    parts: list[str] = []
    y = _legend(parts, [name for name, _ in rows[0][1]], 50.0) + 14
    for (label, split), total in zip(rows, totals, strict=True):
        parts.append(_text(left - 8, y + BAR / 2 + 4, label, anchor="end"))
        x = float(left)
        for number, (_, value) in enumerate(split):
            width = room * value / largest
            # The background between two parts separates them where their colours do not.
            parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{BAR}" fill="{_colour(number)}" '
                f'stroke="{BACKGROUND}"/>'
            )
            x += width
        parts.append(_text(x + 6, y + BAR / 2 + 4, total))
        y += BAR + BAR_GAP
    return _svg(title, y + 12, parts)


def lines(
    title: str,
    x_name: str,
    y_name: str,
    series: Sequence[Series],
    *,
    log_x: bool = False,
    log_y: bool = False,
    x_ticks: Sequence[float] | None = None,
    x_text: Callable[[float], str] | None = None,
    y_most: float | None = None,
    alt: str = "",
) -> str:
    """Lines over two axes.

    Args:
        title: Heading of the plot.
        x_name: Text below the horizontal axis.
        y_name: Text above the vertical axis.
        series: At least one line with a point.
        log_x: Draw the horizontal axis by powers of ten; all x must be positive.
        log_y: Likewise the vertical axis, which else begins at 0.
        x_ticks: Ticks of the horizontal axis. None: every x that a point has.
        x_text: Writes a tick. None: three digits, with k for thousands and M for millions.
        y_most: Value that the vertical axis must reach, at a tick. None: the largest of the points.
        alt: Describes what the lines show to those who do not see them; empty for no description.

    Returns:
        SVG text, `WIDTH` pixels wide.
    """
    xs = sorted({x for line in series for x, _ in line.points})
    ys = [y for line in series for _, y in line.points]
    ticks = xs if x_ticks is None else sorted(x_ticks)
    x_axis = _Axis(min(*xs, *ticks), max(*xs, *ticks), LEFT, WIDTH - RIGHT, log=log_x)
    parts: list[str] = []
    numbers = [position if line.number is None else line.number for position, line in enumerate(series)]
    names, marked = [line.name for line in series], [line.markers for line in series]
    top = _legend(parts, names, 50.0, marked=marked, numbers=numbers) + 34
    bottom = top + LINES_HEIGHT
    most = max(ys) if y_most is None else y_most
    y_axis = _Axis(min(ys) if log_y else 0.0, most, bottom, top, log=log_y, rounded=True)
    for tick in y_axis.ticks():
        at = y_axis.at(tick)
        parts += [_rule(LEFT, at, WIDTH - RIGHT, at), _text(LEFT - 8, at + 4, _short(tick), anchor="end", size=SMALL)]
    for x in ticks:
        at, text = x_axis.at(x), (x_text or _short)(x)
        parts += [_rule(at, top, at, bottom), _text(at, bottom + 18, text, anchor="middle", size=SMALL)]
    parts += [
        _text((LEFT + WIDTH - RIGHT) / 2, bottom + 40, x_name, anchor="middle", size=SMALL, colour=QUIET_INK),
        _text(20, top - 12, y_name, size=SMALL, colour=QUIET_INK),
    ]
    for number, sery in zip(numbers, series, strict=True):
        points = [(x_axis.at(x), y_axis.at(y)) for x, y in sery.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" {_stroke(number)}/>')
        if sery.markers:
            parts += [_marker(number, x, y) for x, y in points]
    return _svg(title, bottom + BOTTOM, parts, alt)


def nothing(title: str, reason: str) -> str:
    """Draw the reason why there are no figures."""
    return _svg(title, 110, [_text(20, 74, reason, colour=QUIET_INK)])


class _Axis:
    """The mapping from values to coordinates."""

    def __init__(
        self, least: float, most: float, begin: float, end: float, *, log: bool, rounded: bool = False
    ) -> None:
        self._log = log
        if log and rounded:
            least, most = 10 ** math.floor(math.log10(least)), 10 ** math.ceil(math.log10(most))
        elif rounded:
            step = _step(most - least)
            most = step * math.ceil(most / step)
        if most == least:
            most = least * 10 if log else least + 1
        self._least, self._most, self._begin, self._end = least, most, begin, end

    def at(self, value: float) -> float:
        """Return the coordinate of ``value``."""
        scale: Callable[[float], float] = math.log10 if self._log else float
        share = (scale(value) - scale(self._least)) / (scale(self._most) - scale(self._least))
        return self._begin + share * (self._end - self._begin)

    def ticks(self) -> Iterator[float]:
        """Round values along the axis."""
        if self._log:
            low, high = math.floor(math.log10(self._least)), math.ceil(math.log10(self._most))
            steps = (1,) if high - low > 3 else (1, 2, 5)
            found = (step * 10.0**power for power in range(low, high + 1) for step in steps)
            yield from (
                value for value in found if self._least <= value * (1 + 1e-9) and value <= self._most * (1 + 1e-9)
            )
            return
        step = _step(self._most - self._least)
        for count in range(math.ceil(self._least / step), math.floor(self._most / step) + 1):
            yield count * step


def _step(span: float) -> float:
    """Return a round step that gives about five ticks."""
    power = 10.0 ** math.floor(math.log10(span / 5)) if span > 0 else 1.0
    return next(step * power for step in (1, 2, 5, 10) if span / (step * power) <= 6)


def _short(value: float) -> str:
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def _legend(
    parts: list[str],
    names: Sequence[str],
    y: float,
    *,
    marked: Sequence[bool] | None = None,
    numbers: Sequence[int] | None = None,
) -> float:
    """Names with their colours, over as many lines as it takes; returns the last one's height.

    Of lines with ``marked``, which are those that have markers; otherwise of areas. ``numbers`` are their colours.
    """
    x = 20.0
    for position, name in enumerate(names):
        number = position if numbers is None else numbers[position]
        width = 34 + _width_of(name)
        if x + width > WIDTH - RIGHT and x > 20:
            x, y = 20.0, y + 20
        if marked is not None:
            parts.append(f'<line x1="{x:.1f}" y1="{y - 4:.1f}" x2="{x + 24:.1f}" y2="{y - 4:.1f}" {_stroke(number)}/>')
            if marked[position]:
                parts.append(_marker(number, x + 12, y - 4))
        else:
            parts.append(f'<rect x="{x + 8:.1f}" y="{y - 10:.1f}" width="12" height="12" fill="{_colour(number)}"/>')
        parts.append(_text(x + 30, y, name))
        x += width + 10
    return y


def _marker(number: int, x: float, y: float) -> str:
    colour = _colour(number)
    if number % 4 == 0:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>'
    if number % 4 == 1:
        return f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" fill="{colour}"/>'
    shape = "l5 9 h-10 z" if number % 4 == 2 else "l5 5 l-5 5 l-5 -5 z"
    return f'<path d="M{x:.1f} {y - 5:.1f} {shape}" fill="{colour}"/>'


def _stroke(number: int) -> str:
    dash = DASHES[number % len(DASHES)]
    return f'stroke="{_colour(number)}" stroke-width="2"' + (f' stroke-dasharray="{dash}"' if dash else "")


def _colour(number: int) -> str:
    return QUIET_INK if number == QUIET else COLOURS[number % len(COLOURS)]


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{GRID}"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = FONT, colour: str = INK) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _width_of(text: str) -> float:
    return FONT * sum(CAPITAL if letter.isupper() else LETTER for letter in text)


def _svg(title: str, height: float, parts: Sequence[str], alt: str = "") -> str:
    label = f' aria-label="{escape(f"{title}. {alt}")}"' if alt else ""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" '
        f'height="{height:.0f}" role="img"{label} font-family="system-ui, sans-serif">'
    )
    named = f'<text x="20" y="26" font-size="15" font-weight="600" fill="{INK}">{escape(title)}</text>'
    ground = f'<rect width="{WIDTH}" height="{height:.0f}" rx="6" fill="{BACKGROUND}"/>'
    return "\n".join([head, f"<title>{escape(title)}</title>", ground, named, *parts, "</svg>", ""])
