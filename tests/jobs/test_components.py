"""Connected components in Spark equal a union-find."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.copies import clusters


def union_find(edges: list[tuple[int, int]]) -> dict[int, int]:
    parent: dict[int, int] = {}

    def find(x: int) -> int:
        while parent.setdefault(x, x) != x:
            x = parent[x]
        return x

    for low, high in edges:
        a, b = sorted((find(low), find(high)))
        parent[b] = a
    return {x: find(x) for x in parent if find(x) != x}


@pytest.mark.parametrize("shape", ["chain", "random", "star"])
def test_components_equal_union_find(spark: Any, shape: str) -> None:
    rng = random.Random(3)
    names = list(range(-20, 40))
    if shape == "chain":
        edges = [(names[i], names[i + 1]) for i in range(40)]
    elif shape == "star":
        edges = [(names[7], name) for name in names[8:30]]
    else:
        edges = [tuple(sorted(rng.sample(names, 2))) for _ in range(45)]  # type: ignore[misc]
    frame = spark.createDataFrame(spark.sparkContext.parallelize(edges), "low bigint, high bigint")
    found = {row.place: row.cluster for row in clusters.components(frame).collect()}
    assert found == union_find(edges)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)).filter(lambda pair: pair[0] < pair[1]), max_size=60))
def test_a_few_edges_are_united_without_spark(edges: list[tuple[int, int]]) -> None:
    """Every place with the smallest it is connected to, by a plain search."""
    near: dict[int, set[int]] = {}
    for low, high in edges:
        near.setdefault(low, set()).add(high)
        near.setdefault(high, set()).add(low)

    def reached(start: int) -> set[int]:
        seen, todo = set(), [start]
        while todo:
            at = todo.pop()
            if at not in seen:
                seen.add(at)
                todo += near[at]
        return seen

    pairs = np.array(edges, np.int64).reshape(-1, 2)
    found = {row["place"]: row["cluster"] for row in clusters.united(pairs[:, 0], pairs[:, 1]).to_pylist()}
    assert found == {place: min(reached(place)) for place in near if min(reached(place)) != place}
