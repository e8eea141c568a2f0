"""One optimizer step for all stages, on `deepspeed.initialize`.

    engine = Engine(model, recipe.pretrain.optimizer, steps, precision, world)
    for step in range(engine.done, steps):
        metrics = engine.step(batch, token_loss)      # batch: this rank's rows; the engine cuts them into micro-batches

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
from training.launch import prebuild
from training.launch.command import Shape
from training.launch.processes import TIMEOUT, World
from training.launch.watchdog import Timer

MAX_SKIPPED = 3  # skipped steps in a row that end a run: one or two are an outlier, three are broken weights or data


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


def rows_per_rank(batch: int, world: World) -> int:
    """Rows of a step's `batch` on each rank. Raises `RecipeError` if the ranks cannot share them equally."""
    if batch % world.size:
        raise RecipeError(
            f"batch {batch} is not a multiple of {world.size} ranks, and each rank takes as many rows",
            f"use a batch that is, or start another number of processes (a divisor of {batch})",
        )
    return batch // world.size


def micro_rows(rows: int, tokens: int, vocabulary: int, device: str) -> int:
    """Rows of a micro-batch: the largest divisor of `rows` whose fp32 logits fit `LOGIT_BYTES`, at least one row."""
    return divisor(rows, LOGIT_BYTES[device] // (4 * tokens * vocabulary))


def divisor(rows: int, limit: int) -> int:
    """The largest divisor of `rows` up to `limit`, at least 1."""
    return max(d for d in range(1, rows + 1) if rows % d == 0 and (d <= limit or d == 1))


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
        self.skipped_in_a_row = 0
        self.forward_timer = Timer(world.device)
        self.broken_batch: Batch | None = None  # this rank's rows of the last of `MAX_SKIPPED` skipped steps
        # 1. The model, and its parameters in groups. `FusedHead` comes first: it replaces a layer.
        muon = section.kind == "muon"
        model.to(world.device)
        if shape.fused_loss:
            FusedHead.install(model)
        groups = parameter_groups(model, section)
        self._peak_lrs = [float(group["lr"]) for group in groups]
        # 2. DeepSpeed's own initialization, lest it look for MPI and set a shorter timeout.
        if not dist.is_initialized():
            raise StageError("there is no process group for the engine", "call training.launch.processes.start first")
        prebuild.prepare(world.size)
        deepspeed.init_distributed(
            dist_backend="nccl" if world.device.type == "cuda" else "gloo",
            auto_mpi_discovery=False,
            verbose=False,
            timeout=TIMEOUT,
        )
        # 3. What is done to the model's layers. At ZeRO 3 sampling and evaluation use a copy: DeepSpeed's hooks would
        # gather the weights layer by layer for every token anew. It is made before hooks and compilation.
        self.plain = copy.deepcopy(model) if shape.zero_stage == 3 else model
        if shape.recompute:
            model.activation_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        if shape.compile:
            _compile(model)
        # 4. The engine of DeepSpeed, and access to where its ZeRO stage keeps things. DeepSpeed does not clip at stage
        # 0, and clips Muon's update instead of its gradient; there zero.py does, and reports the norm.
        own_clipping = not shape.zero_stage or muon
        self.deepspeed, _, _, _ = deepspeed.initialize(
            model=Autocast(model, world.device.type, precision),
            optimizer=optimizer.build(groups, muon, fused=shape.offload or world.device.type == "cuda"),
            dist_init_required=False,
            config=_config(shape, 0.0 if own_clipping else section.clip),
        )
        self.zero = zero.wrap(self.deepspeed, model, shape.zero_stage, muon)
        self._norm: float | None = None
        if own_clipping:
            self.zero.clip(section.clip, self._set_norm)

    def step(self, batch: Batch, loss: Loss, micro: int | None = None) -> Metrics:
        """One optimizer step over this rank's rows; every rank brings as many.

        `batch` holds at least `ids` [rows, tokens]. `micro`: rows per micro-batch, where the caller knows better than
        `micro_rows`. Raises `StageError` if nothing is supervised, or if three steps in a row have no finite gradient
        (each such step is skipped and counted).
        """
        # 1. How many rows go through the model at once, and what the loss is divided by: units of all ranks.
        rows, tokens = batch["ids"].shape
        device = self.world.device
        limit = micro or self.shape.micro_batch
        size = divisor(rows, limit) if limit else micro_rows(rows, tokens, self._vocabulary(), device.type)
        count = loss.denominator(batch).to(device=device, dtype=torch.float64)
        self._all_reduce(count)
        if count == 0:
            raise StageError(
                f"step {self.done + 1}: no token is supervised, so its loss has no mean", "check the masks of the data"
            )
        # 2. The schedule's learning rate for each parameter group.
        factor = schedule(self.done, self.total, self.section)
        for group, peak in zip(self.zero.groups, self._peak_lrs, strict=True):
            group["lr"] = peak * factor
        # 3. Forward and backward, micro-batch by micro-batch. DeepSpeed averages gradients over ranks: undo that.
        self.deepspeed.train()
        scale = self.world.size / float(count)
        total = torch.zeros((), dtype=torch.float64, device=device)
        for start in range(0, rows, size):
            part = {name: tensor[start : start + size].to(device) for name, tensor in batch.items()}
            self.deepspeed.set_gradient_accumulation_boundary(start + size >= rows)
            with self.forward_timer:
                value = loss(self.deepspeed, part)
            total += value.detach().double()
            self.deepspeed.backward(value * scale)
        # 4. The step. The mean loss is that of all ranks' rows.
        self.deepspeed.step()
        self._all_reduce(total)
        mean = float(total / count)
        norm = float(self.deepspeed.get_global_grad_norm() or 0.0) if self._norm is None else self._norm
        # 5. A step without a finite gradient moved nothing (DeepSpeed skips it); several in a row are a broken run.
        skipped = not (math.isfinite(mean) and math.isfinite(norm))
        self.done += 1
        self.skipped += skipped
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        if self.skipped_in_a_row >= MAX_SKIPPED:
            self.broken_batch = batch
            raise StageError(
                f"steps {self.done - MAX_SKIPPED + 1} to {self.done}: loss {mean}, gradient norm {norm}",
                "lower the learning rate, or look for damaged data",
            )
        return Metrics(mean, norm, self.section.lr * factor, int(count), skipped)

    def freeze(self, model: nn.Module) -> nn.Module:
        """A frozen model on this engine's device, for a loss to compare with: a reference, a reward model.

        It takes no gradient, and is in no optimizer, checkpoint or export. Each rank holds all of it.
        """
        return model.to(self.world.device).eval().requires_grad_(False)

    def _vocabulary(self) -> int:
        return int(self.model.config.vocab_size)  # type: ignore[union-attr, arg-type]

    def _all_reduce(self, tensor: Tensor) -> None:
        if self.world.size > 1:
            dist.all_reduce(tensor)

    def _set_norm(self, norm: float) -> None:
        self._norm = norm

    def state(self) -> dict[str, Any]:
        """This rank's part of weights and optimizer state, and the counters. All ranks' together fit any launch."""
        # At stage 0 every rank holds the same, and rank 0 saves it for all.
        pieces = self.zero.pieces() if self.shape.zero_stage or self.world.first else []
        return {
            "done": self.done,
            "skipped": self.skipped,
            "in_a_row": self.skipped_in_a_row,
            # Updates of the optimizer: fewer than `done` by the skipped steps; Adam's bias correction depends on it.
            "updates": max(int(state.get("step", 0)) for state in self.zero.optimizer_states()),
            "pieces": zero.saved(pieces),
        }

    def load_state(self, ranks: Sequence[dict[str, Any]]) -> None:
        """Resume from the states that the ranks of a launch saved, whatever its shape."""
        first = ranks[0]
        self.done, self.skipped, self.skipped_in_a_row = first["done"], first["skipped"], first["in_a_row"]
        zero.fill(self.zero.pieces(), [piece for rank in ranks for piece in rank["pieces"]])
        for state in self.zero.optimizer_states():
            if "step" in state:
                state["step"] = state["step"] * 0 + first["updates"]  # a number or a tensor, as it was
        self.zero.weights_from_master()
        self.refresh_plain()

    def refresh_plain(self) -> None:
        """Copy the weights in training into `plain`: nothing to do below ZeRO 3. All ranks call it."""
        if self.plain is not self.model:
            self.zero.copy_weights(self.plain)


def _config(shape: Shape, clip: float) -> dict[str, Any]:
    """DeepSpeed's configuration for a launch of this shape, clipping gradients to the norm `clip` (0: not at all)."""
    return {
        "train_micro_batch_size_per_gpu": 1,  # rows are cut here, and the loss carries its own denominator
        "gradient_accumulation_steps": 1,
        "zero_optimization": {"stage": shape.zero_stage, "overlap_comm": False, "reduce_scatter": False}
        | ({"offload_optimizer": {"device": "cpu"}} if shape.offload else {}),
        # torch's optimizers, which round alike with offload and without; DeepSpeedCPUAdam does not.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": clip,
        "steps_per_print": 2**31,  # never
    }


def _compile(model: nn.Module) -> None:
    """Compile each layer by itself: one compilation serves all, and the hooks between layers stay as they are."""
    disabled = os.environ.pop("TORCHDYNAMO_DISABLE", None)  # see training/__init__.py: Muon's kernels stay eager
    for layer in max((m for m in model.modules() if isinstance(m, nn.ModuleList)), key=len):
        layer.compile()
    if disabled is not None:
        os.environ["TORCHDYNAMO_DISABLE"] = disabled
