"""The same 20 steps, whatever the shape of the launch: plain PyTorch beside every stage of ZeRO.

    python -m tests.training.test_parity    # prints the table of bench/RESULTS.md

Step 1 differs by the rounding of one forward and backward. Later steps differ by what Adam and Muon make of it: both
divide by a gradient's size, so where a gradient is almost zero, its last bit decides the direction of the step. That
noise is measured here, by plain PyTorch that sums the same rows in other orders, and is the bound.
"""

from __future__ import annotations

import functools
import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.training.support import finish, ranks
from tests.training.test_engine import ROWS, batch, network, optimizer, plain, rank_part
from training.engine.engine import Engine
from training.engine.losses import token_loss
from training.launch import processes
from training.launch.command import Shape

STEPS = 20
FIRST = 1e-5  # largest relative difference at step 1
SLACK = 4  # times the measured noise, which is the largest of few orders of the sums, not of all
# Rows per backward pass, from the first row on or from the last.
ORDERS = tuple(
    tuple(slice(at, at + size) for at in range(0, ROWS, size)[::step]) for size in (1, 2, 4) for step in (1, -1)
)

Curve = list[tuple[float, float]]  # loss and gradient norm of each step
# Optimizer, micro-batches per step, shape of the launch.
Case = tuple[str, int, dict[str, Any]]
SHAPES: list[dict[str, Any]] = [
    *({"zero_stage": stage} for stage in range(4)),
    *({"zero_stage": stage, "offload": True} for stage in range(1, 4)),
    *({"zero_stage": stage, "fused_loss": True, "recompute": True} for stage in range(4)),
]
MATRIX: list[Case] = list(itertools.product(("adamw", "muon"), (1, 4), SHAPES))
FEW: list[Case] = [
    ("adamw", 4, {"zero_stage": 3}),
    ("muon", 4, {"zero_stage": 2}),
    ("muon", 1, {"zero_stage": 3, "offload": True, "fused_loss": True, "recompute": True}),
    ("adamw", 1, {"zero_stage": 0, "fused_loss": True}),
]


def gap(one: Curve, other: Curve) -> tuple[float, float]:
    """Largest relative difference of loss or gradient norm at step 1, and at any later step."""
    per_step = [max(abs(a - b) / abs(b) for a, b in zip(*pair, strict=True)) for pair in zip(one, other, strict=True)]
    return per_step[0], max(per_step[1:])


@functools.cache
def noise(kind: str) -> float:
    """The largest relative difference after step 1 that the order of sums makes, in plain PyTorch."""
    reference = plain(kind, STEPS)
    return max(gap(plain(kind, STEPS, cuts), reference)[1] for cuts in ORDERS)


def curves(size: int, cases: list[Case], folder: Path) -> list[Curve]:
    """Loss and gradient norm of each case on `size` ranks, all in one launch, since starting it takes longest."""
    finish(ranks(size, __file__, json.dumps(cases), folder), seconds=900)
    by_rank = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]
    assert all(curves == by_rank[0] for curves in by_rank)
    return [[(loss, norm) for loss, norm in curve] for curve in by_rank[0]]


def too_far(cases: list[Case], size: int, folder: Path) -> list[tuple[Case, float, float, float]]:
    """The cases that are too far from plain PyTorch, with their two gaps and the bound of the second."""
    processes.start(1)  # sets the threads, as many here as in the ranks: they decide the order of sums
    expected = {kind: plain(kind, STEPS) for kind, *_ in cases}
    bound = {kind: SLACK * noise(kind) for kind in expected}
    far = []
    for case, curve in zip(cases, curves(size, cases, folder), strict=True):
        first, later = gap(curve, expected[case[0]])
        if first > FIRST or later > bound[case[0]]:
            far.append((case, first, later, bound[case[0]]))
    return far


def test_two_ranks_of_some_stages_equal_plain_torch(tmp_path: Path) -> None:
    assert not too_far(FEW, 2, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
def test_every_stage_equals_plain_torch(size: int, tmp_path: Path) -> None:
    assert not too_far(MATRIX, size, tmp_path)


def table() -> None:
    """Print all gaps as Markdown."""
    processes.start(1)
    expected = {kind: plain(kind, STEPS) for kind in ("adamw", "muon")}
    for kind in expected:
        print(f"noise of the order of sums, {kind}: {noise(kind):.1e}")
    print("\n| optimizer | shape | accumulation | ranks | step 1 | later |\n|---|---|---:|---:|---:|---:|")
    for size in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            measured = curves(size, MATRIX, Path(folder))
        for (kind, accumulation, shape), curve in zip(MATRIX, measured, strict=True):
            first, later = gap(curve, expected[kind])
            name = " ".join(["ZeRO", str(shape["zero_stage"]), *(key for key in shape if key != "zero_stage")])
            print(f"| {kind} | {name} | {accumulation} | {size} | {first:.1e} | {later:.1e} |", flush=True)


def main(cases: str, folder: str) -> None:
    """One rank of the launch that `curves` starts."""
    run = []
    for kind, accumulation, shape in json.loads(cases):
        world = processes.start(1)
        engine = Engine(network(), optimizer(kind), STEPS, "fp32", world, Shape(**shape))
        micro = ROWS // world.size // accumulation
        metrics: list[Any] = [engine.step(rank_part(batch(s), world), token_loss, micro) for s in range(STEPS)]
        run.append([(m.loss, m.grad_norm) for m in metrics])
    (Path(folder) / f"{world.rank}.json").write_text(json.dumps(run))
    processes.leave()


if __name__ == "__main__":
    main(*sys.argv[1:]) if sys.argv[1:] else table()
