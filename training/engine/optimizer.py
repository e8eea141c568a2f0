"""AdamW, or Muon for the matrices between hidden layers, and the schedule of their rates."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from pipeline.recipe import Muon, Optimizer

MOMENTUM = 0.95  # Muon: Keller Jordan's choice, https://kellerjordan.github.io/posts/muon/
EPSILON = 1e-8  # Adam (Kingma & Ba 2015)


def schedule(step: int, total: int, section: Optimizer) -> float:
    """Factor of the peak rate at `step` (from 0) of `total`: it rises, holds, and falls to the floor.

    The last step still learns where the floor is zero: it is one step's share of the fall away from it.
    """
    rising, falling = round(section.warmup * total), round(section.decay * total)
    if step < rising:
        return (step + 1) / rising
    left = (total - step) / (falling + 1)  # of the fall
    if left >= 1:
        return 1.0
    height = left if section.fall == "linear" else (1 - math.cos(math.pi * left)) / 2
    return section.floor + (1 - section.floor) * height


def fall_begins(total: int, section: Optimizer) -> int | None:
    """After how many steps of `total` the rate begins to fall; None where it was never held at its peak."""
    steps = total - round(section.decay * total)
    return steps if steps > round(section.warmup * total) else None


def is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """True for what Muon is made for: matrices between hidden layers, not embeddings or the output."""
    outside = ("embed", "lm_head", "wte", "wpe")
    return parameter.ndim == 2 and not any(part in name for part in outside)


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
        peak = section.muon_lr if part == "muon" and isinstance(section, Muon) else section.lr
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


def make(groups: list[dict[str, Any]], muon: bool, fused: bool) -> torch.optim.Optimizer:
    """The optimizer of these groups; `fused` is torch's own kernel for AdamW."""
    if not muon:
        return torch.optim.AdamW(groups, fused=fused or None)
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    made: torch.optim.Optimizer = MuonWithAuxAdam(groups)
    return made
