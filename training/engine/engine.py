"""One optimizer step for all stages, on `deepspeed.initialize`.

    engine = Engine(model, recipe.pretrain.optimizer, steps, precision, world)
    for step in range(engine.done, steps):
        metrics = engine.step(batch, token_loss)      # batch: this rank's rows; the engine cuts them

The loss of a step is the sum over its supervised tokens divided by their number *over all ranks and all micro-batches*
(not a mean of means: transformers#34191). DeepSpeed averages over ranks, which is undone here; accumulation is driven
by its boundary flag, so that it divides by nothing else.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn

from inference.likelihood import LOGIT_BYTES
from pipeline.errors import RecipeError, StageError
from pipeline.recipe import Optimizer
from training.engine import optimizer, zero
from training.engine.cross_entropy import FusedHead
from training.engine.losses import Autocast, Batch, Loss
from training.engine.optimizer import parameter_groups, schedule
from training.launch.command import Shape
from training.launch.processes import TIMEOUT, World
from training.launch.watchdog import Laps

MAX_SKIPPED = 3  # steps in a row without a finite gradient, then something is broken


@dataclass(frozen=True)
class Metrics:
    """One optimizer step. `loss` per unit (nats per token); `grad_norm` before clipping; `lr` is AdamW's.

    `units`: what the loss was divided by, over all ranks: supervised tokens, or pairs.
    """

    loss: float
    grad_norm: float
    lr: float
    units: int
    skipped: bool


def rows_a_rank(batch: int, world: World) -> int:
    """Rows each rank holds of a step's `batch`; `RecipeError` where they do not come out even."""
    if batch % world.size:
        raise RecipeError(
            f"batch {batch} is not a multiple of {world.size} ranks",
            f"use a batch that is, or start another number of processes (a divisor of {batch})",
        )
    return batch // world.size


def micro_rows(rows: int, tokens: int, vocabulary: int, device: str) -> int:
    """Rows of a micro-batch: the largest divisor of `rows` whose logits fit; a row alone always goes."""
    return divisor(rows, LOGIT_BYTES[device] // (4 * tokens * vocabulary))


def divisor(rows: int, most: int) -> int:
    """The largest divisor of `rows` up to `most`, at least 1."""
    return max(d for d in range(1, rows + 1) if rows % d == 0 and (d <= most or d == 1))


class Engine:
    """A model in training: `step` moves it, `state` and `load_state` carry it over a kill (see checkpoint.py)."""

    def __init__(
        self,
        model: nn.Module,
        section: Optimizer,
        total: int,
        precision: Literal["fp32", "bf16"],
        world: World,
        shape: Shape = Shape(),  # noqa: B008  frozen
    ) -> None:
        self.model, self.section, self.total, self.world, self.shape = model, section, total, world, shape
        self.done = 0  # optimizer steps taken, skipped ones included
        self.skipped = 0
        self.in_a_row = 0  # skipped steps since the last that was not
        self.laps = Laps(world.device)
        self.broken: Batch | None = None  # this rank's rows of the step that was one too many without a finite gradient
        muon = section.kind == "muon"
        model.to(world.device)
        if shape.fused_loss:
            FusedHead.into(model)
        groups = parameter_groups(model, section)
        self._peaks = [float(group["lr"]) for group in groups]
        if not dist.is_initialized():
            raise StageError("no process group", "call training.processes.start first")
        deepspeed.init_distributed(
            dist_backend="nccl" if world.device.type == "cuda" else "gloo",
            auto_mpi_discovery=False,
            verbose=False,
            timeout=TIMEOUT,
        )
        # Sampling and evaluation need a model that hooks do not gather piece by piece.
        self.plain = copy.deepcopy(model) if shape.zero_stage == 3 else model
        if shape.recompute:
            model.activation_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        if shape.compile:
            _compile(model)
        clips = not shape.zero_stage or muon
        self.deepspeed, _, _, _ = deepspeed.initialize(
            model=Autocast(model, world.device.type, precision),
            optimizer=optimizer.make(groups, muon, fused=shape.offload or world.device.type == "cuda"),
            dist_init_required=False,
            config={
                "train_micro_batch_size_per_gpu": 1,  # rows are cut here, and the loss carries its own denominator
                "gradient_accumulation_steps": 1,
                "zero_optimization": {"stage": shape.zero_stage, "overlap_comm": False, "reduce_scatter": False}
                | ({"offload_optimizer": {"device": "cpu"}} if shape.offload else {}),
                "zero_allow_untested_optimizer": True,
                "zero_force_ds_cpu_optimizer": False,
                "gradient_clipping": 0.0 if clips else section.clip,
                "steps_per_print": 2**31,
            },
        )
        self.zero = zero.around(self.deepspeed, model, shape.zero_stage, muon)
        self._norm: float | None = None
        if clips:
            self.zero.clip(section.clip, self._report)

    def factor(self) -> float:
        """The schedule's factor for the coming step."""
        return schedule(self.done, self.total, self.section)

    def step(self, batch: Batch, loss: Loss, micro: int | None = None) -> Metrics:
        """One optimizer step over this rank's rows; every rank brings as many.

        `batch` holds at least `ids` [rows, tokens]. `micro`: rows at once, where the caller knows better than
        `micro_rows`. Raises `StageError` where nothing is supervised, or where three steps in a row have no finite
        gradient (each such step is skipped and counted).
        """
        # 1. How many rows go through the model at once, and what the loss is divided by: units of all ranks.
        rows, tokens = batch["ids"].shape
        asked = micro or self.shape.micro_batch
        size = divisor(rows, asked) if asked else micro_rows(rows, tokens, self._vocabulary(), self.world.device.type)
        device = self.world.device
        count = loss.denominator(batch).to(device=device, dtype=torch.float64)
        self._sum(count)
        if count == 0:
            raise StageError(f"step {self.done + 1}: no token is supervised", "check the masks of the data")
        # 2. The schedule's rate for each group of parameters.
        for group, peak in zip(self.zero.groups, self._peaks, strict=True):
            group["lr"] = peak * self.factor()
        rate = self.section.lr * self.factor()
        # 3. Forward and backward, micro-batch by micro-batch. DeepSpeed averages gradients over ranks: undo that.
        self.deepspeed.train()
        scale = self.world.size / float(count)
        total = torch.zeros((), dtype=torch.float64, device=device)
        for start in range(0, rows, size):
            part = {name: tensor[start : start + size].to(device) for name, tensor in batch.items()}
            self.deepspeed.set_gradient_accumulation_boundary(start + size >= rows)
            with self.laps:
                value = loss(self.deepspeed, part)
            total += value.detach().double()
            self.deepspeed.backward(value * scale)
        # 4. The step. The mean loss is that of all ranks' rows.
        self.deepspeed.step()
        self._sum(total)
        mean = float(total / count)
        norm = float(self.deepspeed.get_global_grad_norm() or 0.0) if self._norm is None else self._norm
        # 5. A step without a finite gradient moved nothing (DeepSpeed skips it); some in a row are a broken run.
        bad = not (math.isfinite(mean) and math.isfinite(norm))
        self.done += 1
        self.skipped += bad
        self.in_a_row = self.in_a_row + 1 if bad else 0
        if self.in_a_row >= MAX_SKIPPED:
            self.broken = batch
            raise StageError(
                f"steps {self.done - MAX_SKIPPED + 1} to {self.done}: loss {mean}, gradient norm {norm}",
                "lower the learning rate, or look for damaged data",
            )
        return Metrics(mean, norm, rate, int(count), bad)

    def beside(self, model: nn.Module) -> nn.Module:
        """A frozen model on this engine's device, for a loss to compare with: a reference, a reward model.

        It takes no gradient, and is in no optimizer, checkpoint or export. Each rank holds all of it.
        """
        return model.to(self.world.device).eval().requires_grad_(False)

    def _vocabulary(self) -> int:
        return int(self.model.config.vocab_size)  # type: ignore[union-attr, arg-type]

    def _sum(self, tensor: Tensor) -> None:
        if self.world.size > 1:
            dist.all_reduce(tensor)

    def _report(self, norm: float) -> None:
        self._norm = norm

    def state(self) -> dict[str, Any]:
        """What this rank holds of weights and optimizer, and the counters. All ranks' together fit any launch."""
        # At stage 0 all hold the same.
        pieces = self.zero.pieces() if self.shape.zero_stage or self.world.first else []
        return {
            "done": self.done,
            "skipped": self.skipped,
            "in_a_row": self.in_a_row,
            "updates": max(int(state.get("step", 0)) for state in self.zero.states()),
            "pieces": zero.saved(pieces),
        }

    def load_state(self, ranks: Sequence[dict[str, Any]]) -> None:
        """Go on from what the ranks of a launch saved, whatever its shape."""
        first = ranks[0]
        self.done, self.skipped, self.in_a_row = first["done"], first["skipped"], first["in_a_row"]
        zero.fill(self.zero.pieces(), [piece for rank in ranks for piece in rank["pieces"]])
        for state in self.zero.states():
            if "step" in state:
                state["step"] = state["step"] * 0 + first["updates"]  # a number or a tensor, as it was
        self.zero.weights_from_master()
        self.refresh_plain()

    def refresh_plain(self) -> None:
        """Copy the weights in training into `plain`: nothing to do below ZeRO 3. All ranks call it."""
        if self.plain is not self.model:
            self.zero.copy_weights(self.plain)


def _compile(model: nn.Module) -> None:
    """Compile each layer by itself: one compilation serves all, and hooks between them stay what they are."""
    disabled = os.environ.pop("TORCHDYNAMO_DISABLE", None)  # see training/__init__.py: Muon's kernels stay eager
    for layer in max((m for m in model.modules() if isinstance(m, nn.ModuleList)), key=len):
        layer.compile()
    if disabled is not None:
        os.environ["TORCHDYNAMO_DISABLE"] = disabled
