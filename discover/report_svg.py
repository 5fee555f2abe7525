"""Draws small plots as inline SVG: text in, text out, no library, nothing fetched from anywhere."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 12, 42
TICKS = 6
"""About how many on an axis."""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Series:
    """What is drawn.

    Attributes:
        points: x and y, by x; what is not finite is left out.
        name: in the legend; empty for none.
        kind: "line"; "steps", a value that holds until the next; "dots", of many; "places", of a few.
        band: for each point a lower and an upper y, drawn as an area.
        tone: which colour, from 0.
    """

    points: Points
    name: str = ""
    kind: str = "line"
    band: Sequence[tuple[float, float]] = ()
    tone: int = 0


def plot(series: Sequence[Series], x_label: str, y_label: str, title: str, *, zero: bool = False) -> str:
    """A plot with axes.

    Args:
        series: drawn in order, later ones above.
        x_label, y_label: beside the axes.
        title: read out to those who do not see it.
        zero: draw a line at y = 0, and keep it in sight.
    """
    finite = [(x, y) for one in series for x, y in one.points if math.isfinite(x) and math.isfinite(y)]
    if not finite:
        return '<p class="none">nothing to draw yet</p>'
    heights = [y for _, y in finite] + ([0.0] if zero else [])
    heights += [end for one in series for pair in one.band for end in pair if math.isfinite(end)]
    x_low, x_high = _widened(min(x for x, _ in finite), max(x for x, _ in finite), 0.0)
    y_low, y_high = _widened(min(heights), max(heights), 0.06)

    def at_x(x: float) -> float:
        return LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def at_y(y: float) -> float:
        return HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for y in ticks(y_low, y_high):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at_y(y):.1f}" y2="{at_y(y):.1f}"/>')
        parts.append(_text(LEFT - 6, at_y(y) + 4, short(y), "end"))
    for x in ticks(x_low, x_high):
        parts.append(_text(at_x(x), HEIGHT - BOTTOM + 16, short(x), "middle"))
    if zero:
        parts.append(f'<line class="zero" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at_y(0):.1f}" y2="{at_y(0):.1f}"/>')
    for one in series:
        parts += _drawn(one, [(at_x(x), at_y(y)) for x, y in one.points], [(at_y(a), at_y(b)) for a, b in one.band])
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_label, "middle"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text transform="translate(13 {middle:.1f}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text></svg>'
    )
    named = [one for one in series if one.name]
    legend = "".join(f'<span class="key"><i class="tone{one.tone}"></i>{escape(one.name)}</span>' for one in named)
    return "".join(parts) + (f'<p class="legend">{legend}</p>' if len(named) > 1 else "")


def bars(rows: Sequence[tuple[str, float, str]], title: str) -> str:
    """Horizontal bars: a name, how long, and what to write beside it. The title is read out, as a plot's is."""
    if not rows:
        return '<p class="none">nothing to draw yet</p>'
    line, names, values = 22, 260, 130
    longest = max(max(value for _, value, _ in rows), 1e-12)
    high = line * len(rows) + 6
    parts = [f'<svg viewBox="0 0 {WIDTH} {high}" role="img" aria-label="{escape(title)}">']
    for number, (name, value, words) in enumerate(rows):
        top = 4 + line * number
        wide = max(value / longest * (WIDTH - names - values), 1.0)
        parts.append(_text(names - 8, top + 13, name, "end"))
        parts.append(f'<rect class="bar" x="{names}" y="{top}" width="{wide:.1f}" height="{line - 6}"/>')
        parts.append(_text(names + wide + 6, top + 13, words, "start"))
    return "".join(parts) + "</svg>"


def ticks(low: float, high: float) -> list[float]:
    """Round numbers within a range.

    >>> ticks(0.0, 1.0)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    raw = (high - low) / (TICKS - 1)
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw * 0.7)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{step * number:.10g}") for number in range(first, last + 1)]


def short(value: float) -> str:
    """A number for an axis.

    >>> [short(x) for x in (0.25, 1500.0, 2e6, 3e9, -0.0)]
    ['0.25', '1500', '2M', '3G', '0']
    """
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            factor = 1e3 if letter == "k" else limit
            return f"{value / factor:.10g}{letter}"
    return f"{value + 0.0:.10g}"


def _drawn(one: Series, places: Points, band: Points) -> Iterator[str]:
    kept = [index for index, (x, y) in enumerate(places) if math.isfinite(x) and math.isfinite(y)]
    if band:
        inside = [index for index in kept if all(map(math.isfinite, band[index]))]
        area = [(places[i][0], band[i][0]) for i in inside] + [(places[i][0], band[i][1]) for i in reversed(inside)]
        yield f'<path class="band tone{one.tone}" d="{_path(area)}Z"/>' if area else ""
    points = [places[index] for index in kept]
    if one.kind in ("dots", "places") or len(points) == 1:
        yield f'<g class="dots tone{one.tone}">'
        yield from (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{1.6 if one.kind == "dots" else 3}"/>' for x, y in points)
        yield "</g>"
    elif points:
        if one.kind == "steps":
            corners = [(x, before) for (_, before), (x, _) in pairwise(points)]
            points = [points[0], *(p for pair in zip(corners, points[1:], strict=True) for p in pair)]
        yield f'<path class="line tone{one.tone}" d="{_path(points)}"/>'


def _path(points: Points) -> str:
    return "".join(f"{'L' if number else 'M'}{x:.1f} {y:.1f}" for number, (x, y) in enumerate(points))


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _widened(low: float, high: float, share: float) -> tuple[float, float]:
    """A range that is not empty, with room at both ends."""
    room = share * (high - low)
    if not high > low:
        room = abs(low) * 0.1 or 0.5
    return low - room, high + room
