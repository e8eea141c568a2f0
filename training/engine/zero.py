"""Where DeepSpeed (0.19.8) keeps a model in training, for each stage of ZeRO: its state, its weights, its gradients.

    0  everything on every rank: torch's optimizer on whole parameters
    1  optimizer state partitioned over the ranks, each parameter group as one flat tensor
    2  gradients partitioned likewise
    3  weights too, each parameter by itself

The stage is a matter of the launch, so a checkpoint does not depend on it: `pieces` names ranges of parameters, and a
launch of any other stage and size assembles what it needs. All reads and patches of DeepSpeed's internals are in this
file; they hold for the version above, which pyproject.toml pins, and test_engine.py and test_parity.py compare them
with plain PyTorch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.errors import ArtifactError

Tensors = Mapping[str, Tensor]  # of one piece: `master` (fp32 weights) and the optimizer's moments
# Keys of the optimizer's state, as torch's AdamW and DeepSpeed's Muon name them.
ADAM = ("exp_avg", "exp_avg_sq")
MOMENTUM = "momentum_buffer"


@dataclass(frozen=True)
class Piece:
    """Numbers `[start, start + n)` of the flattened parameter `name`, as this rank holds them: live views [n]."""

    name: str
    start: int
    tensors: Tensors


def saved(pieces: Iterable[Piece]) -> list[tuple[str, int, dict[str, Tensor]]]:
    """Pieces as plain data for a file."""
    return [(piece.name, piece.start, dict(piece.tensors)) for piece in pieces]


def fill(pieces: Iterable[Piece], saved_pieces: Iterable[tuple[str, int, Tensors]]) -> None:
    """Copy into live pieces what any number of ranks saved. `ArtifactError` names a parameter that is not complete."""
    # 1. The saved ranges of each parameter and key.
    ranges: dict[tuple[str, str], list[tuple[int, Tensor]]] = {}
    for name, start, tensors in saved_pieces:
        for key, tensor in tensors.items():
            ranges.setdefault((name, key), []).append((start, tensor))
    # 2. Each live range is filled from its start on, by the saved ranges that overlap it. They may overlap each other:
    # of Muon's momentum at ZeRO 1 two ranks may hold the whole.
    for piece in pieces:
        for key, live in piece.tensors.items():
            filled, stop = piece.start, piece.start + live.numel()
            for start, tensor in sorted(ranges.get((piece.name, key), []), key=lambda item: item[0]):
                end = min(start + tensor.numel(), stop)
                if start <= filled < end:
                    live[filled - piece.start : end - piece.start].copy_(tensor[filled - start : end - start])
                    filled = end
            if filled < stop:
                raise ArtifactError(
                    f"the checkpoint is incomplete: it holds no {key} of {piece.name} from number {filled} on",
                    "start the stage anew with --force",
                )


class Zero(ABC):
    """One stage of ZeRO around a DeepSpeed engine.

    Moments exist from the start, all zero, not from the optimizer's first step on, so that a checkpoint can be copied
    into them.
    """

    def __init__(self, engine: Any, model: nn.Module, muon: bool) -> None:
        self.engine, self.model, self.muon = engine, model, muon
        self.names = {id(p): name for name, p in model.named_parameters()}

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The optimizer's parameter groups, to set their learning rates."""
        groups: list[dict[str, Any]] = self.engine.optimizer.param_groups
        return groups

    @abstractmethod
    def pieces(self) -> Iterator[Piece]:
        """The pieces of `master` and moments that this rank holds."""

    @abstractmethod
    def optimizer_states(self) -> Iterator[dict[str, Any]]:
        """The optimizer's states on this rank, one per tensor that it updates."""

    @abstractmethod
    def weights_from_master(self) -> None:
        """Copy `master` into the model's weights, wherever they lie. All ranks call it."""

    @abstractmethod
    def clip(self, limit: float, report: Callable[[float], None]) -> None:
        """From now on, clip each step's averaged gradient to the norm `limit` and `report` its norm before.

        Only where DeepSpeed does not (stage 0), or would clip Muon's update after it was orthogonalized: the norm of
        that is given by the matrices' ranks and says nothing about the gradient.
        """

    def copy_weights(self, to: nn.Module) -> None:
        """Copy the weights into a module of the same shape. All ranks call it."""
        for ours, theirs in zip(self.model.parameters(), to.parameters(), strict=True):
            theirs.data.copy_(ours.data)

    def init_adam(self, state: dict[str, Any], master: Tensor) -> None:
        """Create Adam's moments as the optimizer would at its first step, unless they exist."""
        if ADAM[0] not in state:
            state |= {key: torch.zeros_like(master) for key in ADAM}
            # torch's AdamW counts in a tensor, DeepSpeed's Muon in an integer.
            state["step"] = 0 if self.muon else torch.tensor(0.0, device=master.device)

    def clip_factor(
        self, gradients: Iterable[Tensor], limit: float, report: Callable[[float], None], partitioned: bool
    ) -> float:
        """Factor that brings a gradient to the norm `limit`; NaN if the norm is not finite.

        `partitioned`: each rank has a part of the gradient, so the squares are summed over ranks.
        """
        square = torch.zeros((), dtype=torch.float64, device=self.engine.device)
        for gradient in gradients:
            square += gradient.double().square().sum().to(square.device)
        if partitioned and dist.get_world_size() > 1:
            dist.all_reduce(square)
        norm = float(square.sqrt())
        report(norm)
        return min(1.0, limit / (norm + 1e-6)) if math.isfinite(norm) else math.nan  # 1e-6: as torch's clip_grad_norm_


class Whole(Zero):
    """Stage 0: whole parameters, with torch's own optimizer."""

    def pieces(self) -> Iterator[Piece]:
        """See `Zero`; every rank holds the same."""
        for group in self.groups:
            for p in group["params"]:
                state = self._state(p, group)
                keys = [key for key in (*ADAM, MOMENTUM) if key in state]
                moments = {key: state[key].view(-1) for key in keys}
                yield Piece(self.names[id(p)], 0, {"master": p.data.view(-1)} | moments)

    def optimizer_states(self) -> Iterator[dict[str, Any]]:
        """See `Zero`."""
        for group in self.groups:
            for p in group["params"]:
                yield self._state(p, group)

    def _state(self, p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        state: dict[str, Any] = self.engine.optimizer.state[p]
        if group["name"] == "muon":
            if MOMENTUM not in state:
                state[MOMENTUM] = torch.zeros_like(p.data)
        else:
            self.init_adam(state, p.data)
        return state

    def weights_from_master(self) -> None:
        """See `Zero`; the weights are the master, so there is nothing to copy."""

    def clip(self, limit: float, report: Callable[[float], None]) -> None:
        """See `Zero`. A step without a finite gradient is not taken: here no loss scaler of DeepSpeed skips it."""
        optimizer = self.engine.optimizer
        original = optimizer.step

        def step(*arguments: Any, **options: Any) -> Any:
            gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
            factor = self.clip_factor(gradients, limit, report, partitioned=False)
            if math.isnan(factor):
                return None
            if factor < 1.0:
                for gradient in gradients:
                    gradient.mul_(factor)
            return original(*arguments, **options)

        optimizer.step = step


class Flat(Zero):
    """Stages 1 and 2: each group's parameters, one after another, are one flat tensor; a rank holds an equal part."""

    def pieces(self) -> Iterator[Piece]:
        """See `Zero`. Muon's momentum without offload is of whole parameters, also where a neighbour holds a part."""
        zero = self.engine.optimizer
        for i, state in enumerate(self.optimizer_states()):
            # 1. What is partitioned like the flat tensor: cut at the parameters' boundaries within this rank's part.
            master = zero.single_partition_of_fp32_groups[i].detach()
            partitioned = {"master": master} | {
                key: state[key] for key in (*ADAM, MOMENTUM) if key in state and (key in ADAM or zero.cpu_offload)
            }
            for p in zero.bit16_groups[i]:
                if p._hp_mapping is not None:  # this rank holds part of it
                    fragment = p._hp_mapping.hp_fragment_address
                    tensors = {key: part.narrow(0, fragment.start, fragment.numel) for key, part in partitioned.items()}
                    yield Piece(self.names[id(p)], p._hp_mapping.lp_fragment_address.start, tensors)
            # 2. Muon orthogonalizes whole matrices, so its momentum is of every matrix that begins or ends in the part.
            if MOMENTUM in state and MOMENTUM not in partitioned:
                own = zero.params_in_partition[i]
                for p, momentum in zip(own, state[MOMENTUM].split([p.numel() for p in own]), strict=True):
                    yield Piece(self.names[id(p)], 0, {MOMENTUM: momentum})

    def optimizer_states(self) -> Iterator[dict[str, Any]]:
        """See `Zero`; one per group."""
        zero = self.engine.optimizer
        for i, group in enumerate(self.groups):
            master = zero.single_partition_of_fp32_groups[i]
            state: dict[str, Any] = zero.optimizer.state[master]
            if group["name"] == "muon":
                if MOMENTUM not in state:
                    size = master.numel() if zero.cpu_offload else sum(p.numel() for p in zero.params_in_partition[i])
                    state[MOMENTUM] = torch.zeros(size, dtype=master.dtype, device=master.device)
            else:
                self.init_adam(state, master.detach())
            yield state

    def weights_from_master(self) -> None:
        """See `Zero`."""
        self.engine.optimizer.update_lp_params()

    def clip(self, limit: float, report: Callable[[float], None]) -> None:
        """See `Zero`.

        DeepSpeed orthogonalizes inside `get_flat_partition`, called group by group once all gradients are reduced: the
        first call measures all groups, each call clips its own. With offload it does so in a method of its own.
        """
        zero = self.engine.optimizer
        if zero.cpu_offload:
            _scale_before(
                zero,
                "_apply_muon_updates_cpu_offload",
                lambda: [master.grad for master in zero.single_partition_of_fp32_groups],
                lambda gradients: self.clip_factor(gradients, limit, report, partitioned=True),
            )
            return
        original, factor = zero.get_flat_partition, 1.0

        def flat_partition(tensors: list[Tensor], *arguments: Any, **options: Any) -> Any:
            nonlocal factor
            group = options["param_group_idx"]
            if group == 0:
                # What is not finite stays so: DeepSpeed finds it and skips the step.
                factor = self.clip_factor(self._own_gradients(), limit, report, partitioned=True)
            if factor < 1.0:
                for gradient in zero.all_grad_tensors[group]:
                    gradient.mul_(factor)
            return original(tensors, *arguments, **options)

        zero.get_flat_partition = flat_partition

    def _own_gradients(self) -> Iterator[Tensor]:
        """The parts of the reduced gradient that this rank will apply, at the time DeepSpeed handles the first group.

        Stage 2 has the sum of the earlier micro-batches elsewhere than the last one, for all groups but the first,
        to which DeepSpeed has added it by then.
        """
        zero = self.engine.optimizer
        for i in range(len(zero.bit16_groups)):
            gradients = zero.get_all_grad_tensors(zero.params_in_partition[i], dtype=torch.float32)
            if (earlier := zero.all_grad_tensors.get(i)) is not None:
                gradients = earlier if i == 0 else [a + b for a, b in zip(earlier, gradients, strict=True)]
            # The part begins inside its first parameter and ends inside its last: without those ends no number of the
            # gradient is counted on two ranks.
            taken, start = 0, int(zero.first_offset[i])
            for gradient in gradients:
                part = gradient.flatten()[start : start + int(zero.partition_size[i]) - taken]
                yield part
                taken, start = taken + part.numel(), 0


class Sharded(Zero):
    """Stage 3: a rank holds an equal part of each parameter; the last rank's is padded."""

    def pieces(self) -> Iterator[Piece]:
        """See `Zero`."""
        zero = self.engine.optimizer
        states = list(self.optimizer_states())
        for i, parameters in enumerate(zero.fp16_groups):
            tensors = {"master": zero.fp32_partitioned_groups_flat[i].detach()} | {
                key: states[i][key] for key in (*ADAM, MOMENTUM) if key in states[i]
            }
            for p in parameters:
                _, offset, size = zero.grad_position[zero.get_param_id(p)]
                start = dist.get_rank() * size
                own = min(size, p.ds_numel - start)
                if own > 0:
                    parts = {key: tensor.narrow(0, offset, own) for key, tensor in tensors.items()}
                    yield Piece(self.names[id(p)], start, parts)

    def optimizer_states(self) -> Iterator[dict[str, Any]]:
        """See `Zero`; one per sub-group of parameters."""
        zero = self.engine.optimizer
        for i, master in enumerate(zero.fp32_partitioned_groups_flat):
            state: dict[str, Any] = zero.optimizer.state[master]
            if MOMENTUM not in state:  # DeepSpeed makes it for Muon's groups
                assert not (self.muon and zero.sub_groups_using_muon[i])
                self.init_adam(state, master.detach())
            yield state

    def weights_from_master(self) -> None:
        """See `Zero`; small parameters, which every rank keeps whole, are gathered anew."""
        zero = self.engine.optimizer
        zero._partition_all_parameters()
        for i in range(len(zero.fp16_groups)):
            zero._reassign_or_swap_out_partitioned_parameters(i)
        if zero.persistent_parameters:
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)

    def copy_weights(self, to: nn.Module) -> None:
        """See `Zero`; gathered one parameter at a time."""
        for ours, theirs in zip(self.model.parameters(), to.parameters(), strict=True):
            with deepspeed.zero.GatheredParameters([ours]):
                theirs.data.copy_(ours.data)

    def clip(self, limit: float, report: Callable[[float], None]) -> None:
        """See `Zero`."""
        zero = self.engine.optimizer

        def gradients() -> list[Tensor]:
            if zero.offload_optimizer:
                return [master.grad for master in zero.fp32_partitioned_groups_flat]
            return [gradient for i in range(len(zero.fp16_groups)) for gradient in zero.averaged_gradients[i]]

        _scale_before(
            zero,
            "_apply_muon_to_accumulated_grads",
            gradients,
            lambda parts: self.clip_factor(parts, limit, report, partitioned=True),
        )


def _scale_before(
    zero: Any, method: str, gradients: Callable[[], list[Tensor]], factor: Callable[[list[Tensor]], float]
) -> None:
    """Scale the gradients by `factor` before `method` of DeepSpeed's optimizer, which computes Muon's updates, runs.

    If they are not finite it does not run: it would spoil the momentum in a step that is skipped.
    """
    original = getattr(zero, method)

    def scaled() -> None:
        parts = gradients()
        scale = factor(parts)
        if math.isnan(scale):
            return
        if scale < 1.0:
            for gradient in parts:
                gradient.mul_(scale)
        original()

    setattr(zero, method, scaled)


def wrap(engine: Any, model: nn.Module, stage: int, muon: bool) -> Zero:
    """The stage of ZeRO that `engine` was initialized with."""
    kind = (Whole, Flat, Flat, Sharded)[stage]
    return kind(engine, model, muon)
