"""Losses, and the model as they see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from inference.likelihood import log_probabilities
from training.engine.cross_entropy import FusedHead

Batch = Mapping[str, Tensor]  # tensors of one first dimension: rows


class Loss(Protocol):
    """A sum over a micro-batch, and what it is divided by over the whole step and all ranks.

    The mean is taken of all units of an optimizer step together, not of means: transformers#34191.
    """

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """The sum of the losses of the micro-batch's units."""

    def denominator(self, batch: Batch) -> Tensor:
        """How many units (tokens, pairs) these rows hold."""


def supervised(batch: Batch) -> Tensor:
    """How many tokens a batch supervises: those of `mask` that are targets (all but the first column)."""
    return batch["mask"][:, 1:].sum()


@dataclass(frozen=True)
class TokenLoss:
    """Next-token cross-entropy in nats per supervised token.

    `ids` and `mask` [rows, n]; `mask[i]` speaks of `ids[i]` as target. `positions` [rows, n], where given, restart at
    each document of a packed row, so that none sees another. `z_loss` x logsumexp^2 (PaLM, Chowdhery et al. 2022,
    section 5) is in the gradient, not in the value.
    """

    z_loss: float = 0.0

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """See `Loss`."""
        ids, mask = batch["ids"], batch["mask"][:, 1:]
        targets = ids[:, 1:]
        extra = {"position_ids": batch["positions"][:, :-1]} if "positions" in batch else {}
        head = _network(model).get_output_embeddings()  # type: ignore[operator]
        if isinstance(head, FusedHead):
            with head.told(targets, mask, self.z_loss):
                loss: Tensor = model(input_ids=ids[:, :-1], use_cache=False, **extra).logits
            return loss
        logits = model(input_ids=ids[:, :-1], use_cache=False, **extra).logits
        loss = -(log_probabilities(logits, targets) * mask).sum()
        if self.z_loss:
            extra_loss = (self.z_loss * torch.logsumexp(logits.float(), dim=-1).square() * mask).sum()
            loss = loss + (extra_loss - extra_loss.detach())
        return loss

    def denominator(self, batch: Batch) -> Tensor:
        """See `Loss`."""
        return supervised(batch)


token_loss = TokenLoss()


def _network(model: nn.Module) -> nn.Module:
    """The `transformers` model inside what an engine gives to a loss."""
    inner = getattr(model, "module", model)  # of DeepSpeed's engine
    return inner.model if isinstance(inner, Autocast) else inner


class Autocast(nn.Module):
    """The model under autocast: master weights, gradients and their sums stay fp32 whatever the products use."""

    def __init__(self, model: nn.Module, device: str, precision: str) -> None:
        super().__init__()
        self.model, self.device, self.low = model, device, precision == "bf16"

    def forward(self, *arguments: Any, **options: Any) -> Any:
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.low):
            return self.model(*arguments, **options)
