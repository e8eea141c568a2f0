"""The engine against plain torch: the same losses, the same norms, on one rank and on two."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inference.network import build
from pipeline.errors import RecipeError, StageError
from pipeline.recipe import AdamW, Model, Muon, Optimizer
from tests.training.support import finish, ranks
from training.engine import optimizer as optimizers
from training.engine.engine import Engine, micro_rows, rows_per_rank
from training.engine.losses import Batch, TokenLoss, token_loss
from training.engine.optimizer import schedule
from training.launch import processes
from training.launch.command import Shape

VOCABULARY, ROWS, WINDOW, STEPS = 128, 8, 24, 5
SHAPES = [Shape(0), Shape(1), Shape(2), Shape(3), Shape(1, offload=True), Shape(3, offload=True)]
CONFIG = Model(preset="qwen3", layers=2, width=32, heads=2, kv_heads=1, head_dim=16, mlp_width=64, window=32, tied=True)


def optimizer(kind: str, **changes: Any) -> Optimizer:
    settings: dict[str, Any] = {
        "kind": kind, "lr": 0.003, "betas": (0.9, 0.95), "weight_decay": 0.1, "warmup": 0.2,
        "decay": 0.2, "fall": "linear", "floor": 0.0, "clip": 0.5, "z_loss": 0.0,
    }  # fmt: skip
    return Muon(muon_lr=0.02, **settings | changes) if kind == "muon" else AdamW(**settings | changes)


def network() -> Any:
    return build(CONFIG, VOCABULARY, 0, 1, seed=3)


def batch(step: int) -> dict[str, Tensor]:
    """Rows with very different numbers of supervised tokens, one of them with none: a mean of means would differ."""
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(VOCABULARY, (ROWS, WINDOW + 1), generator=generator)
    lengths = torch.tensor([WINDOW, 3, 0, 9, 1, WINDOW, 17, 2])
    mask = (torch.arange(WINDOW + 1)[None] <= lengths[:, None]).long()
    return {"ids": ids, "mask": mask}


def rank_part(rows: dict[str, Tensor], world: processes.World) -> dict[str, Tensor]:
    """The rows of this rank."""
    size = ROWS // world.size
    return {k: v[world.rank * size : (world.rank + 1) * size] for k, v in rows.items()}


def plain(kind: str, steps: int = STEPS, cuts: Sequence[slice] = (slice(None),)) -> list[tuple[float, float]]:
    """Loss and gradient norm of the same steps by torch alone, with one backward pass per cut of the rows."""
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    net, section = network(), optimizer(kind)
    groups = optimizers.parameter_groups(net, section)
    peaks = [g["lr"] for g in groups]
    torch_optimizer = MuonWithAuxAdam(groups) if kind == "muon" else torch.optim.AdamW(groups)
    metrics = []
    for step in range(steps):
        rows = batch(step)
        total = 0.0
        for cut in cuts:
            loss = token_loss(net, {k: v[cut] for k, v in rows.items()}) / rows["mask"][:, 1:].sum()
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        norm = torch.nn.utils.clip_grad_norm_(net.parameters(), section.clip)
        for group, peak in zip(torch_optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * schedule(step, steps, section)
        torch_optimizer.step()
        torch_optimizer.zero_grad()
        metrics.append((total, float(norm)))
    return metrics


def trained(kind: str, micro: int | None, precision: Any = "fp32") -> tuple[Engine, list[Any]]:
    """An engine after `STEPS` steps, and their metrics."""
    world = processes.start(1)
    engine = Engine(network(), optimizer(kind), STEPS, precision, world)
    return engine, [engine.step(rank_part(batch(s), world), token_loss, micro) for s in range(STEPS)]


def two_ranks(folder: Path, *arguments: str) -> list[Any]:
    """Run this file on two ranks. Returns the metrics of each."""
    finish(ranks(2, __file__, folder, *arguments))
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def assert_close(metrics: list[Any], expected: list[tuple[float, float]]) -> None:
    """Step 1 to 1e-5; later steps differ more, since Adam and Muon divide by a gradient's size and enlarge rounding."""
    assert metrics[0][0] == pytest.approx(expected[0][0], rel=1e-5)
    assert metrics[0][1] == pytest.approx(expected[0][1], rel=1e-4)
    for (loss, norm), (expected_loss, expected_norm) in zip(metrics, expected, strict=True):
        assert loss == pytest.approx(expected_loss, rel=2e-3)
        assert norm == pytest.approx(expected_norm, rel=2e-2)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("micro", [ROWS, 2])
def test_one_rank_equals_plain_torch(kind: str, micro: int) -> None:
    _, metrics = trained(kind, micro)
    assert_close([(m.loss, m.grad_norm) for m in metrics], plain(kind))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_two_ranks_equal_plain_torch(kind: str, tmp_path: Path) -> None:
    first, second = two_ranks(tmp_path, kind)
    assert first == second
    assert_close(first, plain(kind))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_compiled_layers_equal_plain_torch(kind: str) -> None:
    """Compiled kernels sum in another order, so the bounds are those of any other shape."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    world = processes.start(1)
    engine = Engine(network(), optimizer(kind), STEPS, "fp32", world, Shape(2, fused_loss=True, compile=True))
    metrics = [engine.step(rank_part(batch(s), world), token_loss, 2) for s in range(STEPS)]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert_close([(m.loss, m.grad_norm) for m in metrics], plain(kind))


def test_bf16_is_near_and_learns_in_fp32() -> None:
    engine, metrics = trained("muon", 4, "bf16")
    assert metrics[0].loss == pytest.approx(plain("muon")[0][0], rel=1e-2)
    assert {p.dtype for p in engine.model.parameters()} == {torch.float32}


def test_schedule_rises_holds_and_falls() -> None:
    section = optimizer("adamw", warmup=0.2, decay=0.5)
    factors = [schedule(s, 10, section) for s in range(10)]
    assert factors[:5] == [0.5, 1.0, 1.0, 1.0, 1.0]
    assert factors[5:] == pytest.approx([5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert schedule(0, 1, optimizer("adamw", warmup=0.05, decay=0.5)) == 1.0


def test_a_cosine_falls_to_its_floor_as_torch_says() -> None:
    section = optimizer("adamw", warmup=0.1, decay=0.9, fall="cosine", floor=0.1)
    weight = torch.nn.Parameter(torch.zeros(1))
    sgd = torch.optim.SGD([weight], lr=1.0)
    # Our last step is one before the floor, torch's at it: 91 steps, not 90.
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, T_max=91, eta_min=0.1)
    for step in range(10, 100):
        scheduler.step()
        assert schedule(step, 100, section) == pytest.approx(sgd.param_groups[0]["lr"])
    assert [schedule(step, 100, section) for step in (0, 9)] == [0.1, 1.0]


def test_a_batch_must_be_a_multiple_of_the_ranks() -> None:
    world = processes.World(0, 0, 2, 2, torch.device("cpu"))
    assert rows_per_rank(16, world) == 8
    with pytest.raises(RecipeError, match="2 ranks"):
        rows_per_rank(15, world)


def test_micro_batches_divide_the_rows() -> None:
    assert micro_rows(8, 256, 4096, "cpu") == 4
    assert micro_rows(32, 256, 4096, "cpu") == 4
    assert micro_rows(7, 1024, 4096, "cpu") == 1
    assert micro_rows(3, 10**6, 10**5, "cpu") == 1


def test_a_step_without_supervised_tokens_is_refused() -> None:
    engine = Engine(network(), optimizer("adamw"), 5, "fp32", processes.start(1))
    rows = batch(0)
    rows["mask"] = rows["mask"] * 0
    with pytest.raises(StageError, match="no token is supervised"):
        engine.step(rows, token_loss)


class Broken(TokenLoss):
    """A loss of NaN, as damaged data or diverged weights make it."""

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        return super().__call__(model, batch) * math.nan


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_steps_without_a_finite_gradient_are_skipped_then_stop(kind: str, shape: Shape) -> None:
    engine = Engine(network(), optimizer(kind), 9, "fp32", processes.start(1), shape)

    def weights() -> dict[str, Tensor]:
        engine.refresh_plain()
        return {name: tensor.clone() for name, tensor in engine.plain.state_dict().items()}

    # A sound step moves the weights, a broken one does not.
    broken = Broken()
    initial = weights()
    engine.step(batch(0), token_loss)
    before = weights()
    assert any(not torch.equal(tensor, initial[name]) for name, tensor in before.items())
    assert engine.step(batch(1), broken).skipped
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights().items())
    # A sound step between them begins the count anew; the third in a row ends the run.
    assert not engine.step(batch(2), token_loss).skipped
    engine.step(batch(3), broken)
    engine.step(batch(4), broken)
    with pytest.raises(StageError, match="steps 4 to 6"):
        engine.step(batch(5), broken)
    assert engine.skipped == 4


class Pairs:
    """The loss of a reward model (Bradley & Terry): rows in pairs, the better one first; as DPO, it counts pairs."""

    def __init__(self, reference: nn.Module | None = None) -> None:
        self.reference = reference

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        scores = model(input_ids=batch["ids"], use_cache=False).logits[:, -1, 0]
        if self.reference is not None:
            with torch.no_grad():
                before = self.reference(input_ids=batch["ids"], use_cache=False).logits[:, -1, 0]
            scores = scores - before
        return -F.logsigmoid(scores[::2] - scores[1::2]).sum()

    def denominator(self, batch: Batch) -> Tensor:
        return torch.tensor(len(batch["ids"]) // 2)


def test_a_loss_brings_its_own_denominator() -> None:
    engine = Engine(network(), optimizer("adamw"), STEPS, "fp32", processes.start(1))
    loss, rows = Pairs(), {"ids": batch(0)["ids"]}
    with torch.no_grad():
        expected = float(loss(network(), rows)) / (ROWS // 2)
    step = engine.step(rows, loss, 2)
    assert step.units == ROWS // 2 and step.loss == pytest.approx(expected, rel=1e-5)


def test_a_frozen_model_beside_the_engine_takes_no_gradient_and_is_in_no_checkpoint() -> None:
    engine = Engine(network(), optimizer("adamw"), STEPS, "fp32", processes.start(1))
    reference = engine.freeze(network())
    before = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
    size = len(engine.state()["pieces"])
    rows = {"ids": batch(0)["ids"]}
    first = engine.step(rows, Pairs(reference), 2)
    assert first.loss == pytest.approx(math.log(2), rel=1e-5)  # the model is its own reference before it moved
    assert engine.step(rows, Pairs(reference), 2).loss < first.loss
    assert all(torch.equal(tensor, before[name]) for name, tensor in reference.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in reference.parameters())
    assert len(engine.state()["pieces"]) == size


def test_muon_takes_hidden_matrices_only() -> None:
    groups = optimizers.parameter_groups(network(), optimizer("muon"))
    assert [g["name"] for g in groups] == ["muon", "matrix", "vector"]
    assert len(groups[0]["params"]) == 7 * CONFIG.layers
    assert [tuple(p.shape) for p in groups[1]["params"]] == [(VOCABULARY, CONFIG.width)]
    assert groups[2]["weight_decay"] == 0.0


def main(folder: str, kind: str) -> None:
    engine, metrics = trained(kind, 2)
    (Path(folder) / f"{engine.world.rank}.json").write_text(json.dumps([(m.loss, m.grad_norm) for m in metrics]))
    processes.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
