"""Connected components in Spark equal a union-find."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import deduplicate


def union_find(edges: list[tuple[str, str]]) -> dict[str, str]:
    parent: dict[str, str] = {}

    def find(x: str) -> str:
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
    names = [f"{i:03d}" for i in range(60)]
    if shape == "chain":
        edges = [(names[i], names[i + 1]) for i in range(40)]
    elif shape == "star":
        edges = [(names[7], name) for name in names[8:30]]
    else:
        edges = [tuple(sorted(rng.sample(names, 2))) for _ in range(45)]  # type: ignore[misc]
    frame = spark.createDataFrame(spark.sparkContext.parallelize(edges), "low string, high string")
    found = {row.id: row.cluster for row in deduplicate.components(spark, frame).collect()}
    assert found == union_find(edges)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)).filter(lambda pair: pair[0] < pair[1]), max_size=60))
def test_a_few_edges_are_united_without_spark(edges: list[tuple[int, int]]) -> None:
    """Every id with the smallest it is connected to, by a plain search."""
    near: dict[str, set[str]] = {}
    for low, high in edges:
        near.setdefault(f"{low:02d}", set()).add(f"{high:02d}")
        near.setdefault(f"{high:02d}", set()).add(f"{low:02d}")

    def reached(start: str) -> set[str]:
        seen, todo = set(), [start]
        while todo:
            at = todo.pop()
            if at not in seen:
                seen.add(at)
                todo += near[at]
        return seen

    found = deduplicate.united((f"{low:02d}", f"{high:02d}") for low, high in edges)
    assert found == {id_: min(reached(id_)) for id_ in near}
