"""AdamW, or Muon for the matrices between hidden layers, and the schedule of their learning rates."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from pipeline.recipe import Muon, Optimizer

MOMENTUM = 0.95  # Muon: Keller Jordan's choice, https://kellerjordan.github.io/posts/muon/
EPSILON = 1e-8  # Adam (Kingma & Ba 2015)


def schedule(step: int, total: int, section: Optimizer) -> float:
    """Factor of the peak learning rate at `step` (from 0) of `total`: warmup, then constant, then decay to the floor.

    The last step still learns if the floor is zero: the decay ends one step later.
    """
    warmup_steps, decay_steps = round(section.warmup * total), round(section.decay * total)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    left = (total - step) / (decay_steps + 1)  # share of the decay that is still to come
    if left >= 1:
        return 1.0
    height = left if section.fall == "linear" else (1 - math.cos(math.pi * left)) / 2
    return section.floor + (1 - section.floor) * height


def decay_start(total: int, section: Optimizer) -> int | None:
    """After how many steps of `total` the learning rate begins to decay; None if it is never constant at its peak."""
    steps = total - round(section.decay * total)
    return steps if steps > round(section.warmup * total) else None


def is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """True for what Muon is made for: matrices between hidden layers, not embeddings or the output."""
    outside = ("embed", "lm_head", "wte", "wpe")  # in the names of Qwen3, Llama and GPT-2
    return parameter.ndim == 2 and not any(part in name for part in outside)


def parameter_groups(model: nn.Module, section: Optimizer) -> list[dict[str, Any]]:
    """The optimizer's parameter groups, with their peak learning rate as `lr`; vectors (norms, biases) do not decay."""
    muon = section.kind == "muon"
    # 1. Each parameter belongs to one of three kinds. DeepSpeed's ZeRO reads `use_muon` from the parameter itself.
    parameters: dict[str, list[nn.Parameter]] = {"muon": [], "matrix": [], "vector": []}
    for name, parameter in model.named_parameters():
        parameter.use_muon = muon and is_hidden_matrix(name, parameter)  # type: ignore[attr-defined]
        kind = "muon" if parameter.use_muon else "matrix" if parameter.ndim >= 2 else "vector"  # type: ignore[attr-defined]
        parameters[kind].append(parameter)
    # 2. A group per kind that occurs.
    groups: list[dict[str, Any]] = []
    for kind, members in parameters.items():
        if not members:
            continue
        lr = section.muon_lr if kind == "muon" and isinstance(section, Muon) else section.lr
        decay = 0.0 if kind == "vector" else section.weight_decay
        group: dict[str, Any] = {"params": members, "lr": lr, "weight_decay": decay, "name": kind}
        if kind == "muon":
            group |= {"momentum": MOMENTUM, "ns_method": "gram"}
        else:
            group |= {"betas": tuple(section.betas), "eps": EPSILON}
        if muon:
            group["use_muon"] = kind == "muon"
        groups.append(group)
    return groups


def build(groups: list[dict[str, Any]], muon: bool, fused: bool) -> torch.optim.Optimizer:
    """The optimizer of these groups; `fused`: AdamW as one kernel of torch's own."""
    if not muon:
        return torch.optim.AdamW(groups, fused=fused or None)
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    optimizer: torch.optim.Optimizer = MuonWithAuxAdam(groups)
    return optimizer
