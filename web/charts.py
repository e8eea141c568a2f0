"""Line charts and histograms as inline SVG: no script, no font, no colour (`static/style.css` styles the classes)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 440, 260  # user units; small enough for 12-unit letters to be read on a phone
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 14, 40
SMALL_WIDTH, SMALL_HEIGHT = 220, 74  # of a histogram
_ROOM = 0.25  # beyond a limit, as a share of what is within
_SMALL_AXIS, _BINS = 18, 40  # units below its bars; a bar is 5 units wide
_POINTS = 400  # a line 380 units wide cannot show more than these: neighbours are averaged

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


@dataclass(frozen=True)
class _Scale:
    """Maps data to user units of the SVG; `left`…`right` and `low`…`high` are the ranges of the two axes."""

    left: float
    right: float
    low: float
    high: float

    def x(self, value: float) -> float:
        return _LEFT + (value - self.left) / ((self.right - self.left) or 1) * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - _BOTTOM - (value - self.low) / ((self.high - self.low) or 1) * (HEIGHT - _TOP - _BOTTOM)


def line_chart(
    title: str, x_label: str, y_label: str, series: Sequence[Series], levels: Sequence[Level] = (), unit: str = "number"
) -> Markup:
    """A chart with a text alternative, or nothing where no series has a point. `unit`: `number` or `share` (0…1)."""
    drawn = [line for line in series if line.points]
    if not drawn:
        return Markup("")
    xs = [x for line in drawn for x, _ in line.points]
    ys = [y for line in drawn for _, y in line.points] + [level.y for level in levels]
    y_ticks = [0.0, 0.25, 0.5, 0.75, 1.0] if unit == "share" else nice_ticks(min(ys), max(ys))
    scale = _Scale(min(xs), max(xs), min(y_ticks[0], *ys), max(y_ticks[-1], *ys))
    # SVG paints in order: lines come last, over the grid and the levels.
    parts = [*_axes(scale, y_ticks, x_label, unit), *_levels(scale, levels), *_lines(scale, drawn)]
    description = "; ".join(
        f"{line.name} from {_number(line.points[0][1])} to {_number(line.points[-1][1])}" for line in drawn
    ) + "".join(f"; {level.name} {_number(level.y)}" for level in levels)
    return Markup(
        '<figure class="chart"><figcaption>{}<span class="unit">{}</span>{}</figcaption>'
        '<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg></figure>'
    ).format(title, y_label, _legend(drawn), WIDTH, HEIGHT, f"{title}: {description}", Markup("").join(parts))


def _axes(scale: _Scale, y_ticks: Sequence[float], x_label: str, unit: str) -> Iterator[Markup]:
    """Grid lines and numbers of the y axis, then numbers and label of the x axis."""
    grid = Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>')
    beside = Markup('<text class="tick" text-anchor="end" x="{}" y="{:.1f}">{}</text>')
    below = Markup('<text class="tick" text-anchor="middle" x="{:.1f}" y="{}">{}</text>')
    axis = Markup('<text class="axis" text-anchor="middle" x="{:.1f}" y="{}">{}</text>')
    for tick in y_ticks:
        y = scale.y(tick)
        yield grid.format(_LEFT, WIDTH - _RIGHT, y, y)
        yield beside.format(_LEFT - 7, y + 4, f"{tick:.0%}" if unit == "share" else _tick(tick))
    for tick in nice_ticks(scale.left, scale.right, 6):
        if scale.left <= tick <= scale.right:
            yield below.format(scale.x(tick), HEIGHT - _BOTTOM + 17, _tick(tick))
    yield axis.format((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 5, x_label)


def _levels(scale: _Scale, levels: Sequence[Level]) -> Iterator[Markup]:
    """Dashed lines with their names: above the line, or below it where another name is less than a line away."""
    dashed = Markup('<line class="level" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>')
    note = Markup('<text class="note" text-anchor="end" x="{}" y="{:.1f}">{} {}</text>')
    taken: list[float] = []
    for level in levels:
        y = scale.y(level.y)
        yield dashed.format(_LEFT, WIDTH - _RIGHT, y, y)
        baseline = y - 5 if all(abs(y - 5 - other) > 13 for other in taken) else y + 14
        taken.append(baseline)
        yield note.format(WIDTH - _RIGHT, baseline, level.name, f"{level.y:.2f}")


def _lines(scale: _Scale, drawn: Sequence[Series]) -> Iterator[Markup]:
    """A polyline per series, or a dot where it has a single point."""
    dot = Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="3"/>')
    for line, number in _numbered(drawn):
        style = "faint" if number is None else f"line line-{number}"
        points = [(scale.x(x), scale.y(y)) for x, y in thinned(line.points)]
        if len(points) == 1:
            yield dot.format(f"dot {style}", *points[0])
        else:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            yield Markup('<polyline class="{}" points="{}"/>').format(style, path)


def _legend(drawn: Sequence[Series]) -> Markup:
    """The names of the lines in their colours; nothing for a single line, which the title names."""
    if len(drawn) < 2:
        return Markup("")
    key = Markup('<span class="key {}">{}</span>')
    keys = [key.format("faint" if number is None else f"key-{number}", line.name) for line, number in _numbered(drawn)]
    return Markup('<span class="legend">{}</span>').format(Markup("").join(keys))


def _numbered(drawn: Sequence[Series]) -> Iterator[tuple[Series, int | None]]:
    """Each series with the number of its colour: faint ones first, behind the others, and without a number."""
    for line in drawn:
        if line.faint:
            yield line, None
    for number, line in enumerate(line for line in drawn if not line.faint):
        yield line, number


@dataclass(frozen=True)
class Limit:
    """A threshold of a histogram: values below it (`least`) or above it (not `least`) are beyond."""

    value: float
    least: bool


def histogram(title: str, values: Sequence[float], limits: Sequence[Limit], logarithmic: bool = False) -> Markup:
    """A small histogram with its thresholds drawn, or nothing where there are no values.

    The axis spans 99% of the values; what is outside counts in the first and the last bar, and a limit outside is
    not drawn. `logarithmic`: for counts, whose values span powers of ten.
    """
    if not values:
        return Markup("")
    left, right = _span(sorted(values), limits, logarithmic)
    place = _place(left, right, logarithmic)
    bins = [0] * _BINS
    for value in values:
        bins[min(_BINS - 1, int(place(value) * _BINS))] += 1
    width, height = SMALL_WIDTH / _BINS, SMALL_HEIGHT - _SMALL_AXIS
    parts = []
    for number, count in enumerate(bins):
        if count:
            tall = max(1.5, count / max(bins) * (height - 4))  # a single document is seen beside thousands
            middle = (number + 0.5) / _BINS
            beyond = any(
                (middle < place(limit.value)) if limit.least else (middle > place(limit.value)) for limit in limits
            )
            parts.append(
                Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
                    "beyond" if beyond else "within", number * width + 0.5, height - tall, width - 1, tall
                )
            )
    axis = Markup('<text class="tick" text-anchor="{}" x="{}" y="{}">{}</text>')
    parts.append(axis.format("start", 0, SMALL_HEIGHT - 3, _number(left)))
    parts.append(axis.format("end", SMALL_WIDTH, SMALL_HEIGHT - 3, _number(right)))
    line = Markup('<line class="level" x1="{0:.1f}" x2="{0:.1f}" y1="0" y2="{1}"/>')
    parts += [line.format(place(limit.value) * SMALL_WIDTH, height) for limit in limits if left <= limit.value <= right]
    bounds = "".join(f"; at {'least' if limit.least else 'most'} {_number(limit.value)}" for limit in limits)
    label = f"{title}: {len(values):,} values from {_number(min(values))} to {_number(max(values))}{bounds}"
    return Markup('<svg class="histogram" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        SMALL_WIDTH, SMALL_HEIGHT, label, Markup("").join(parts)
    )


def _span(ordered: Sequence[float], limits: Sequence[Limit], logarithmic: bool) -> tuple[float, float]:
    """The ends of a histogram's axis: 99% of the values, and the limits with some room for what is beyond them."""
    left, right = ordered[len(ordered) // 200], ordered[-1 - len(ordered) // 200]
    if logarithmic:
        left = max(1.0, min([left, *(limit.value / 2 for limit in limits)]))
        right = max([right, left * 2, *(limit.value * 2 for limit in limits)])
        return left, right
    width = (right - left) or 1.0
    # A limit far from all values would squeeze them into one bar.
    near = [limit for limit in limits if left - 3 * width <= limit.value <= right + 3 * width]
    below = [limit.value - _ROOM * (right - limit.value) for limit in near if limit.least]
    above = [limit.value + _ROOM * (limit.value - left) for limit in near if not limit.least]
    left = min([left, *below, *(limit.value for limit in near)])
    right = max([right, *above, *(limit.value for limit in near)])
    if ordered[0] >= 0:
        left = max(0.0, left)
    if ordered[-1] <= 1 and all(limit.value <= 1 for limit in limits):  # a share
        right = min(1.0, right)
    return (left, right) if right > left else (left - 0.5, left + 0.5)


def _place(left: float, right: float, logarithmic: bool) -> Callable[[float], float]:
    """Where a value stands between the ends of an axis: 0…1, cut at both."""

    def share(value: float) -> float:
        if logarithmic:
            position = math.log(max(value, left) / left) / math.log(right / left)
        else:
            position = (value - left) / (right - left)
        return min(1.0, max(0.0, position))

    return share


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


def _tick(value: float) -> str:
    """A round number with all of its digits; from 10,000 on in thousands, for the margin is narrow."""
    return f"{value / 1000:,.9g}k" if abs(value) >= 10_000 else f"{value:,.9g}"


def _number(value: float) -> str:
    """A number of a text alternative."""
    if value == round(value):
        return _tick(value)
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
