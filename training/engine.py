"""One optimizer step for all stages, on `deepspeed.initialize`.

    engine = Engine(model, recipe.pretrain.optimizer, steps, precision, world)
    for step in range(engine.done, steps):
        metrics = engine.step(batch, token_loss)      # batch: this rank's rows; the engine cuts them

The loss of a step is the sum over its supervised tokens divided by their number *over all ranks and all micro-batches*
(not a mean of means: transformers#34191). DeepSpeed averages over ranks, which is undone here; accumulation is driven
by its boundary flag, so that it divides by nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import deepspeed
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import RecipeError, StageError
from pipeline.recipe import Optimizer
from training.launch import TIMEOUT, World

Batch = Mapping[str, Tensor]  # tensors of one first dimension: rows
Loss = Callable[[nn.Module, Batch], Tensor]  # (model, micro-batch) -> sum of the losses of its supervised tokens

LOGIT_BYTES = {"cpu": 16 << 20, "cuda": 2 << 30}  # of a micro-batch, in fp32: what caches hold; no limit
ZERO_STAGE = 1  # optimizer state over the ranks; below 3 B parameters more sharding buys nothing (LESSONS.md, 12)
MOMENTUM = 0.95  # Muon: Keller Jordan's choice, https://kellerjordan.github.io/posts/muon/
EPSILON = 1e-8  # Adam (Kingma & Ba 2015)
_MAX_SKIPPED = 3  # steps in a row without a finite gradient, then something is broken


@dataclass(frozen=True)
class Metrics:
    """One optimizer step. `loss` in nats a token; `grad_norm` before clipping; `lr` is AdamW's."""

    loss: float
    grad_norm: float
    lr: float
    tokens: int
    skipped: bool


def schedule(step: int, total: int, warmup: float, decay: float) -> float:
    """Warm-up, stable, linear decay: the factor of the peak rate at `step` (from 0) of `total`.

    The last step still learns: its factor is one step's share of the decay, not zero.
    """
    rising, falling = round(warmup * total), round(decay * total)
    if step < rising:
        return (step + 1) / rising
    if step >= total - falling:
        return (total - step) / (falling + 1)
    return 1.0


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
    most = LOGIT_BYTES[device] // (4 * tokens * vocabulary)
    return max(d for d in range(1, rows + 1) if rows % d == 0 and (d <= most or d == 1))


def supervised(batch: Batch) -> Tensor:
    """How many tokens a batch supervises: those of `mask` that are targets (all but the first column)."""
    return batch["mask"][:, 1:].sum()


def log_probabilities(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probability of each target, by fp32 log-softmax: logits [rows, n, vocabulary], targets [rows, n]."""
    flat = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
    return -flat.view(targets.shape)


def token_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Next-token cross-entropy in nats, summed: `ids` and `mask` [rows, n]; `mask[i]` speaks of `ids[i]` as target.

    `positions` [rows, n], where given, restart at each document of a packed row, so that none sees another.
    """
    ids, mask = batch["ids"], batch["mask"][:, 1:]
    extra = {"position_ids": batch["positions"][:, :-1]} if "positions" in batch else {}
    logits = model(input_ids=ids[:, :-1], use_cache=False, **extra).logits
    return -(log_probabilities(logits, ids[:, 1:]) * mask).sum()


def is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """True for what Muon is made for: matrices between hidden layers, not embeddings or the output."""
    outside = ("embed", "lm_head", "wte", "wpe")
    return parameter.ndim == 2 and not any(part in name for part in outside)


class _Forward(nn.Module):
    """The model under autocast: master weights, gradients and their sums stay fp32 whatever the products use."""

    def __init__(self, model: nn.Module, device: str, precision: str) -> None:
        super().__init__()
        self.model, self.device, self.low = model, device, precision == "bf16"

    def forward(self, *arguments: Any, **options: Any) -> Any:
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.low):
            return self.model(*arguments, **options)


def parameter_groups(model: nn.Module, section: Optimizer) -> list[dict[str, Any]]:
    """Groups for the optimizer; vectors (norms, biases) do not decay. `peak` is the group's highest rate."""
    muon = section.kind == "muon"
    parts: dict[str, list[nn.Parameter]] = {"muon": [], "matrix": [], "vector": []}
    for name, parameter in model.named_parameters():
        parameter.use_muon = muon and is_hidden_matrix(name, parameter)  # type: ignore[attr-defined]  # DeepSpeed's flag
        part = "muon" if parameter.use_muon else "matrix" if parameter.ndim >= 2 else "vector"  # type: ignore[attr-defined]
        parts[part].append(parameter)
    groups: list[dict[str, Any]] = []
    for part, found in parts.items():
        peak = section.muon_lr if part == "muon" else section.lr
        decay = 0.0 if part == "vector" else section.weight_decay
        group: dict[str, Any] = {"params": found, "lr": peak, "weight_decay": decay, "name": part}
        if part == "muon":
            group |= {"momentum": MOMENTUM, "ns_method": "gram"}
        else:
            group |= {"betas": tuple(section.betas), "eps": EPSILON}
        if muon:
            group["use_muon"] = part == "muon"
        if found:
            groups.append(group)
    return groups


class Engine:
    """A model in training: `step` moves it, `state` and `load_state` carry it over a kill (see checkpoint.py)."""

    def __init__(
        self,
        model: nn.Module,
        section: Optimizer,
        total: int,
        precision: Literal["fp32", "bf16"],
        world: World,
    ) -> None:
        self.model, self.section, self.total, self.world = model, section, total, world
        self.done = 0  # optimizer steps taken, skipped ones included
        self.skipped = 0
        self._in_a_row = 0
        self._muon = section.kind == "muon"
        model.to(world.device)
        groups = parameter_groups(model, section)
        self._peaks = [float(group["lr"]) for group in groups]
        if not dist.is_initialized():
            raise StageError("no process group", "call training.launch.start first")
        deepspeed.init_distributed(
            dist_backend="nccl" if world.device.type == "cuda" else "gloo",
            auto_mpi_discovery=False,
            verbose=False,
            timeout=TIMEOUT,
        )
        self.deepspeed, self.optimizer, _, _ = deepspeed.initialize(
            model=_Forward(model, world.device.type, precision),
            optimizer=_optimizer(groups, self._muon),
            dist_init_required=False,
            config={
                "train_micro_batch_size_per_gpu": 1,  # rows are cut here, and the loss carries its own denominator
                "gradient_accumulation_steps": 1,
                "zero_optimization": {"stage": ZERO_STAGE, "overlap_comm": False, "reduce_scatter": False},
                "zero_allow_untested_optimizer": True,
                "zero_force_ds_cpu_optimizer": False,
                # DeepSpeed would clip Muon's update, whose norm is that of the matrices' ranks, not of a gradient.
                "gradient_clipping": 0.0 if self._muon else section.clip,
                "steps_per_print": 2**31,
            },
        )
        self._norm = math.nan
        if self._muon:
            self._clip_before_muon()

    def factor(self) -> float:
        """The schedule's factor for the coming step."""
        return schedule(self.done, self.total, self.section.warmup, self.section.decay)

    def step(self, batch: Batch, loss: Loss, micro: int | None = None) -> Metrics:
        """One optimizer step over this rank's rows; every rank brings as many.

        `batch` holds at least `mask`, whose targets are the denominator. `micro`: rows at once, where the caller
        knows better than `micro_rows`. Raises `StageError` where nothing is supervised, or where three steps in a row
        have no finite gradient (each such step is skipped and counted).
        """
        rows, tokens = batch["mask"].shape
        size = micro or micro_rows(rows, tokens, self._vocabulary(), self.world.device.type)
        device = self.world.device
        count = supervised(batch).to(device=device, dtype=torch.float64)
        self._sum(count)
        if count == 0:
            raise StageError(f"step {self.done}: no token is supervised", "check the masks of the data")
        for group, peak in zip(self.optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * self.factor()
        rate = self.section.lr * self.factor()
        self.deepspeed.train()
        scale = self.world.size / float(count)
        total = torch.zeros((), dtype=torch.float64, device=device)
        for start in range(0, rows, size):
            part = {name: tensor[start : start + size].to(device) for name, tensor in batch.items()}
            self.deepspeed.set_gradient_accumulation_boundary(start + size >= rows)
            value = loss(self.deepspeed, part)
            total += value.detach().double()
            self.deepspeed.backward(value * scale)
        self.deepspeed.step()
        self._sum(total)
        mean = float(total / count)
        norm = self._norm if self._muon else float(self.deepspeed.get_global_grad_norm() or 0.0)
        bad = not (math.isfinite(mean) and math.isfinite(norm))
        self.done += 1
        self.skipped += bad
        self._in_a_row = self._in_a_row + 1 if bad else 0
        if self._in_a_row >= _MAX_SKIPPED:
            raise StageError(
                f"steps {self.done - _MAX_SKIPPED} to {self.done - 1}: loss {mean}, gradient norm {norm}",
                "lower the learning rate, or look for damaged data",
            )
        return Metrics(mean, norm, rate, int(count), bad)

    def _vocabulary(self) -> int:
        return int(self.model.config.vocab_size)  # type: ignore[union-attr, arg-type]

    def _sum(self, tensor: Tensor) -> None:
        if self.world.size > 1:
            dist.all_reduce(tensor)

    def _clip_before_muon(self) -> None:
        """Measure and clip the averaged gradient between its reduction and Muon's orthogonalization.

        DeepSpeed (0.19.8, ZeRO 1) orthogonalizes inside `get_flat_partition`, called group by group once all gradients
        are reduced, and measures and clips what comes out. The first call measures all groups, each call clips its own.
        """
        zero = self.optimizer
        original = zero.get_flat_partition
        state = {"factor": 1.0}

        def flat_partition(tensors: list[Tensor], *arguments: Any, **options: Any) -> Any:
            group = options["param_group_idx"]
            if group == 0:
                self._norm = self._gradient_norm()
                finite = math.isfinite(self._norm)
                # What is not finite stays so: DeepSpeed finds it and skips the step.
                state["factor"] = min(1.0, self.section.clip / (self._norm + 1e-6)) if finite else 1.0
            if state["factor"] < 1.0:
                for gradient in zero.all_grad_tensors[group]:
                    gradient.mul_(state["factor"])
            return original(tensors, *arguments, **options)

        zero.get_flat_partition = flat_partition

    def _gradient_norm(self) -> float:
        """L2 norm of the reduced gradient over all ranks; each adds the pieces it owns."""
        zero = self.optimizer
        square = torch.zeros((), dtype=torch.float64, device=self.world.device)
        for i in range(len(zero.bit16_groups)):
            gradients = zero.get_all_grad_tensors(zero.params_in_partition[i], dtype=torch.float32)
            position, start = 0, int(zero.first_offset[i])
            for gradient in gradients:
                piece = gradient.flatten()[start : start + int(zero.partition_size[i]) - position]
                square += piece.double().square().sum()
                position, start = position + piece.numel(), 0
        self._sum(square)
        return float(square.sqrt())

    def state(self) -> dict[str, Any]:
        """What this rank holds of the optimizer, and the counters. Together with all ranks' it fits any world size."""
        return {
            "done": self.done,
            "skipped": self.skipped,
            "in_a_row": self._in_a_row,
            "groups": [self._group_state(i) for i in range(len(self.optimizer.bit16_groups))],
        }

    def _group_state(self, i: int) -> dict[str, Any]:
        zero = self.optimizer
        master = zero.single_partition_of_fp32_groups[i]
        inner = zero.optimizer.state[master]
        found: dict[str, Any] = {"master": master.detach()}
        if "momentum_buffer" in inner:  # Muon's: whole parameters, also those that a neighbour holds a piece of
            order = {id(p): n for n, p in enumerate(zero.bit16_groups[i])}
            sizes = [p.numel() for p in zero.params_in_partition[i]]
            pieces = inner["momentum_buffer"].split(sizes)
            named = zip(zero.params_in_partition[i], pieces, strict=True)
            found["momentum"] = {order[id(p)]: piece.clone() for p, piece in named}
        else:
            found |= {key: inner[key] for key in ("exp_avg", "exp_avg_sq") if key in inner}
            found["step"] = int(inner.get("step", 0))
        return found

    def load_state(self, ranks: list[dict[str, Any]]) -> None:
        """Go on from the states of all ranks of a launch, of this size or another. The model has its weights."""
        zero, first = self.optimizer, ranks[0]
        self.done, self.skipped, self._in_a_row = first["done"], first["skipped"], first["in_a_row"]
        for i, group in enumerate(first["groups"]):
            pieces = [rank["groups"][i] for rank in ranks]
            master = zero.single_partition_of_fp32_groups[i]
            master.data.copy_(self._own(i, [p["master"] for p in pieces]))
            inner = zero.optimizer.state[master]
            if "momentum" in group:
                whole: dict[int, Tensor] = {}
                for piece in pieces:
                    whole |= piece["momentum"]
                order = {id(p): n for n, p in enumerate(zero.bit16_groups[i])}
                parts = [whole[order[id(p)]].flatten() for p in zero.params_in_partition[i]]
                inner["momentum_buffer"] = torch.cat(parts).to(master.device)
            elif "exp_avg" in group:
                for key in ("exp_avg", "exp_avg_sq"):
                    inner[key] = self._own(i, [p[key] for p in pieces]).clone()
                # torch's AdamW counts in a tensor, DeepSpeed's Muon in an integer.
                inner["step"] = group["step"] if self._muon else torch.tensor(float(group["step"]))

    def _own(self, i: int, pieces: list[Tensor]) -> Tensor:
        """This rank's partition of group `i`, from the partitions of a launch; padding is not carried over."""
        zero = self.optimizer
        size = int(zero.partition_size[i])
        used = sum(p.numel() for p in zero.bit16_groups[i])
        whole = torch.cat([piece.flatten() for piece in pieces])[:used]
        own = torch.zeros(size, dtype=whole.dtype)
        mine = whole[self.world.rank * size : (self.world.rank + 1) * size]
        own[: mine.numel()] = mine
        return own.to(self.world.device)


def _optimizer(groups: list[dict[str, Any]], muon: bool) -> torch.optim.Optimizer:
    if not muon:
        return torch.optim.AdamW(groups)
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    made: torch.optim.Optimizer = MuonWithAuxAdam(groups)
    return made
