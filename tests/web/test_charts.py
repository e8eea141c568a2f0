"""Ticks enclose, points land where they belong, long lines are thinned."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from web.charts import SMALL_WIDTH, Level, Limit, Series, histogram, line_chart, nice_ticks, thinned

numbers = st.floats(-1e9, 1e9, allow_nan=False).map(lambda x: round(x, 3))


@given(numbers, numbers, st.integers(2, 8))
def test_ticks_enclose_and_are_even(a: float, b: float, about: int) -> None:
    low, high = min(a, b), max(a, b)
    ticks = nice_ticks(low, high, about)
    step = ticks[1] - ticks[0]
    assert ticks[0] <= low + step / 1000 and ticks[-1] >= high - step / 1000
    assert 2 <= len(ticks) <= about + 3
    steps = {round((second - first) / step, 3) for first, second in pairwise(ticks)}
    assert steps == {1.0}


def test_ticks_are_round() -> None:
    assert nice_ticks(1.7, 3.1) == [1.5, 2.0, 2.5, 3.0, 3.5]
    assert nice_ticks(0, 400, 4) == [0, 200, 400]


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (10_000, 20_000, ["10k", "12.5k", "15k", "17.5k", "20k"]),
        (10_000, 11_000, ["10k", "10.25k", "10.5k", "10.75k", "11k"]),
        (120, 130, ["120", "122.5", "125", "127.5", "130"]),
        (0, 1, ["0", "0.25", "0.5", "0.75", "1"]),
    ],
)
def test_a_tick_is_labelled_with_what_it_stands_for(low: float, high: float, labels: list[str]) -> None:
    svg = line_chart("a", "x", "y", [Series("s", [(0, low), (1, high)])])
    assert re.findall(r'class="tick" text-anchor="end"[^>]*>([^<]+)<', svg) == labels


def test_nothing_to_draw_draws_nothing() -> None:
    assert line_chart("a", "x", "y", [Series("s", [])], [Level("l", 1)]) == ""


def test_ends_lie_on_the_frame() -> None:
    svg = line_chart("a", "x", "y", [Series("s", [(0, 0), (10, 1)])], unit="share")
    first, *_, last = re.search(r'points="([^"]+)"', svg).group(1).split()  # type: ignore[union-attr]
    assert first == "46.0,220.0" and last == "426.0,14.0"


def test_names_are_escaped() -> None:
    svg = line_chart('<a"b>', "x", "y", [Series("<s>", [(0, 0), (1, 1)])])
    assert "<s>" not in svg and '<a"b>' not in svg


def test_thinned_keeps_the_mean_and_the_last() -> None:
    points = [(float(n), float(n % 2)) for n in range(10_001)]
    fewer = thinned(points)
    assert len(fewer) <= 402
    assert fewer[-1] == points[-1]
    assert all(0.3 < y < 0.7 for _, y in fewer[:-1])
    assert thinned(points[:5]) == points[:5]


def bars(svg: str, kind: str) -> list[float]:
    """The left edges of a histogram's bars."""
    return [float(x) for x in re.findall(rf'<rect class="{kind}" x="([\d.]+)"', svg)]


def threshold(svg: str) -> float:
    (x,) = re.findall(r'<line class="level" x1="([\d.]+)"', svg)
    return float(x)


@pytest.mark.parametrize("logarithmic", [False, True])
@pytest.mark.parametrize("least", [False, True])
def test_what_is_beyond_a_threshold_is_marked_and_on_its_side(least: bool, logarithmic: bool) -> None:
    values = [10.0] * 500 + [40.0] * 500
    svg = str(histogram("words", values, [Limit(20, least)], logarithmic))
    beyond, within = bars(svg, "beyond"), bars(svg, "within")
    assert len(beyond) == len(within) == 1
    assert (beyond[0] < threshold(svg) < within[0]) if least else (within[0] < threshold(svg) < beyond[0])
    assert f"words: 1,000 values from 10 to 40; at {'least' if least else 'most'} 20" in svg


@given(
    st.lists(st.floats(0, 1e6, allow_nan=False), min_size=1, max_size=50),
    st.lists(st.builds(Limit, st.floats(0, 1e6), st.booleans()), max_size=3),
    st.booleans(),
)
def test_any_values_have_a_histogram(values: list[float], limits: list[Limit], logarithmic: bool) -> None:
    svg = str(histogram("score", values, limits, logarithmic))
    places = [float(x) for x in re.findall(r' x1?="([-\d.]+)"', svg)]
    assert places and all(0 <= place <= SMALL_WIDTH for place in places)
    assert bars(svg, "beyond") or bars(svg, "within")


def test_a_far_threshold_does_not_squeeze_the_values() -> None:
    values = [float(n % 100) for n in range(1000)]
    far = str(histogram("length", values, [Limit(1e6, False)]))
    assert len(bars(far, "within")) > 30 and "level" not in far, "a line at the edge would stand at a false value"
    shares = [0.0] * 99 + [0.9]
    assert threshold(str(histogram("share", shares, [Limit(0.3, False)]))) < SMALL_WIDTH / 2
    assert histogram("nothing", [], [Limit(1, True)]) == ""
