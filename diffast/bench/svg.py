"""Pictures of a report as inline SVG, without scripts, fonts or styles from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT = 720, 360
LEFT, RIGHT, TOP, BOTTOM = 70, 250, 16, 46
COLOURS = ("#1b6ca8", "#2a9d55", "#7b4fb5", "#d1495b", "#e08e0b", "#8c6d46", "#555555", "#11a3a3")
BAR = 17  # height of a bar and the gap below it


def _text(x: float, y: float, words: str, anchor: str = "start", extra: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {extra}>{escape(words)}</text>'


def _svg(width: float, height: float, parts: Sequence[str], title: str) -> str:
    head = f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" role="img">'
    return "\n".join([head, f"<title>{escape(title)}</title>", *parts, "</svg>"])


def _ticks(low: float, high: float) -> list[float]:
    """Returns 1, 2, 5 times powers of ten between two positive numbers."""
    found = []
    for exponent in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1):
        found += [m * 10.0**exponent for m in (1, 2, 5)]
    return [tick for tick in found if low * 0.999 <= tick <= high * 1.001]


def curves(lines: Sequence[dict[str, Any]], across: str, up: str, title: str) -> str:
    """Returns a picture of lines on two logarithmic axes.

    Args:
        lines: each with "name" and "points", a list of [x, y]; points that are not positive and
            finite are left out.
        across: what the horizontal axis shows.
        up: what the vertical axis shows.
        title: of the picture, for readers that see none.
    """
    kept = []
    for line in lines:
        points = [(x, y) for x, y in line["points"] if x > 0 and 0 < y < math.inf]
        kept += [(line["name"], sorted(points))] if points else []
    if not kept:
        return ""
    xs = [x for _, points in kept for x, _ in points]
    ys = [y for _, points in kept for _, y in points]
    place_x = _scale(min(xs) * 0.95, max(xs) * 1.05, LEFT, WIDTH - RIGHT)
    place_y = _scale(min(ys) * 0.9, max(ys) * 1.1, HEIGHT - BOTTOM, TOP)
    parts = [
        f'<rect x="{LEFT}" y="{TOP}" width="{WIDTH - RIGHT - LEFT}" '
        f'height="{HEIGHT - BOTTOM - TOP}" fill="none" stroke="#999"/>'
    ]
    for tick in _ticks(min(xs) * 0.95, max(xs) * 1.05):
        x = place_x(tick)
        parts.append(f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#ddd"/>')
        parts.append(_text(x, HEIGHT - BOTTOM + 16, f"{tick:g}", "middle"))
    for tick in _ticks(min(ys) * 0.9, max(ys) * 1.1):
        y = place_y(tick)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(_text(LEFT - 6, y + 4, f"{tick:g}", "end"))
    for i, (name, points) in enumerate(kept):
        colour = COLOURS[i % len(COLOURS)]
        dash = "" if name.startswith("diffast") else ' stroke-dasharray="5 3"'
        path = "L".join(f"{place_x(x):.1f} {place_y(y):.1f}" for x, y in points)
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        parts += [
            f'<circle cx="{place_x(x):.1f}" cy="{place_y(y):.1f}" r="2.5" fill="{colour}"/>'
            for x, y in points
        ]
        y = TOP + 8 + 18 * i
        x = WIDTH - RIGHT + 14
        parts.append(f'<path d="M{x} {y}h22" stroke="{colour}" stroke-width="2"{dash}/>')
        parts.append(_text(x + 28, y + 4, name))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, across, "middle"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    turned = f'transform="rotate(-90 16 {middle:.0f})"'
    parts.append(_text(16, middle, up, "middle", turned))
    return _svg(WIDTH, max(HEIGHT, TOP + 18 * len(kept) + 20), parts, title)


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = math.log(high / low)
    return lambda value: start + (end - start) * math.log(value / low) / span


def bars(
    values: Sequence[tuple[str, float]],
    unit: str,
    title: str,
    line: float | None = None,
    below: str = COLOURS[3],
) -> str:
    """Returns a picture of horizontal bars.

    Args:
        values: name and value of each bar.
        unit: written behind the values.
        title: of the picture, for readers that see none.
        line: where a vertical line is drawn, such as 1 for equality.
        below: colour of bars that do not reach the line.
    """
    if not values:
        return ""
    left, width = 330, WIDTH + 60
    longest = max(max(value for _, value in values), line or 0)
    wide = (width - left - 110) / longest
    parts = []
    for i, (name, value) in enumerate(values):
        y = 6 + i * BAR
        colour = COLOURS[0] if line is None or value >= line else below
        size = max(1.0, value * wide)
        parts.append(_text(left - 8, y + 11, name, "end"))
        parts.append(
            f'<rect x="{left}" y="{y}" width="{size:.1f}" height="{BAR - 4}" fill="{colour}"/>'
        )
        parts.append(_text(left + size + 6, y + 11, f"{value:.3g} {unit}"))
    height = 12 + BAR * len(values)
    if line is not None:
        x = left + line * wide
        parts.append(f'<path d="M{x:.1f} 2V{height - 4}" stroke="#222" stroke-dasharray="3 3"/>')
    return _svg(width, height, parts, title)
