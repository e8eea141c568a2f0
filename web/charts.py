"""Line charts as inline SVG: no script, no font, no colour of its own (`report.html.j2` styles the classes)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 440, 260  # user units; small enough for 12-unit letters to be read on a phone
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 14, 40
_POINTS = 400  # more than these in a line cannot be told apart; neighbours are averaged

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """A named line; `points` (x, y), finite, in order of x. `faint`: drawn thin, behind the others."""

    name: str
    points: Sequence[Point]
    faint: bool = False


@dataclass(frozen=True)
class Level:
    """A named horizontal line, to compare with."""

    name: str
    y: float


def line_chart(
    title: str, x_label: str, y_label: str, series: Sequence[Series], levels: Sequence[Level] = (), unit: str = "number"
) -> Markup:
    """A chart with a text alternative, or nothing where no series has a point. `unit`: `number` or `share` (0…1)."""
    drawn = [one for one in series if one.points]
    if not drawn:
        return Markup("")
    xs = [x for one in drawn for x, _ in one.points]
    ys = [y for one in drawn for _, y in one.points] + [level.y for level in levels]
    left, right = min(xs), max(xs)
    ticks = [0.0, 0.25, 0.5, 0.75, 1.0] if unit == "share" else nice_ticks(min(ys), max(ys))
    low, high = min(ticks[0], *ys), max(ticks[-1], *ys)

    def at_x(x: float) -> float:
        return _LEFT + (x - left) / ((right - left) or 1) * (WIDTH - _LEFT - _RIGHT)

    def at_y(y: float) -> float:
        return HEIGHT - _BOTTOM - (y - low) / ((high - low) or 1) * (HEIGHT - _TOP - _BOTTOM)

    parts: list[Markup] = []
    for tick in ticks:
        parts.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(
                _LEFT, WIDTH - _RIGHT, at_y(tick), at_y(tick)
            )
        )
        shown = f"{tick:.0%}" if unit == "share" else _number(tick)
        parts.append(
            Markup('<text class="tick" text-anchor="end" x="{}" y="{:.1f}">{}</text>').format(
                _LEFT - 7, at_y(tick) + 4, shown
            )
        )
    for tick in nice_ticks(left, right, 6):
        if left <= tick <= right:
            parts.append(
                Markup('<text class="tick" text-anchor="middle" x="{:.1f}" y="{}">{}</text>').format(
                    at_x(tick), HEIGHT - _BOTTOM + 17, _number(tick)
                )
            )
    parts.append(
        Markup('<text class="axis" text-anchor="middle" x="{:.1f}" y="{}">{}</text>').format(
            (_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 5, x_label
        )
    )
    taken: list[float] = []
    for level in levels:
        y = at_y(level.y)
        parts.append(
            Markup('<line class="level" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(_LEFT, WIDTH - _RIGHT, y, y)
        )
        label = y - 5 if all(abs(y - 5 - other) > 13 for other in taken) else y + 14
        taken.append(label)
        parts.append(
            Markup('<text class="note" text-anchor="end" x="{}" y="{:.1f}">{} {}</text>').format(
                WIDTH - _RIGHT, label, level.name, f"{level.y:.2f}"
            )
        )
    number = 0
    for one in sorted(drawn, key=lambda one: not one.faint):
        style = "faint" if one.faint else f"line line-{number}"
        number += not one.faint
        points = [(at_x(x), at_y(y)) for x, y in thinned(one.points)]
        if len(points) == 1:
            parts.append(
                Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="3"/>').format(f"dot {style}", *points[0])
            )
        else:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            parts.append(Markup('<polyline class="{}" points="{}"/>').format(style, path))
    told = "; ".join(
        f"{one.name} from {_number(one.points[0][1])} to {_number(one.points[-1][1])}" for one in drawn
    ) + "".join(f"; {level.name} {_number(level.y)}" for level in levels)
    return Markup(
        '<figure class="chart"><figcaption>{}<span class="unit">{}</span>{}</figcaption>'
        '<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg></figure>'
    ).format(title, y_label, _legend(drawn), WIDTH, HEIGHT, f"{title}: {told}", Markup("").join(parts))


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most `_POINTS` points: means of neighbours, the last point kept as it is."""
    size = math.ceil(len(points) / _POINTS)
    if size <= 1:
        return list(points)
    groups = [points[i : i + size] for i in range(0, len(points) - 1, size)]
    means = [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]
    return [*means, points[-1]]


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers that enclose low…high, `about` of them (Heckbert 1990, "Nice numbers for graph labels")."""
    if high <= low:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    rough = (high - low) / max(1, about - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * n, 12) for n in range(first, last + 1)]


def _legend(drawn: Sequence[Series]) -> Markup:
    if len(drawn) < 2:
        return Markup("")
    number, items = 0, []
    for one in sorted(drawn, key=lambda one: not one.faint):
        style = "faint" if one.faint else f"key-{number}"
        number += not one.faint
        items.append(Markup('<span class="key {}">{}</span>').format(style, one.name))
    return Markup('<span class="legend">{}</span>').format(Markup("").join(items))


def _number(value: float) -> str:
    if abs(value) >= 10_000:
        return f"{value / 1000:,.0f}k"
    return f"{value:,.0f}" if value == round(value) else f"{value:.3g}"
