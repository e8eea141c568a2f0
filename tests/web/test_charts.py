"""Ticks enclose, points land where they belong, long lines are thinned."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from web.charts import Level, Series, line_chart, nice_ticks, thinned

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
