"""Losses, and the autocast wrapper around the model they call."""

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

    The mean is over all units of an optimizer step together, not a mean of micro-batches' means: transformers#34191.
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

    `ids` and `mask` [rows, n]; `mask[i]` says whether `ids[i]` counts as a target. `positions` [rows, n], if present,
    restart at each document of a packed row, so that no document attends to another. `z_loss` x logsumexp^2 (PaLM,
    Chowdhery et al. 2022, section 5) is in the gradient, not in the value.
    """

    z_loss: float = 0.0

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """See `Loss`."""
        # Position i predicts id i + 1: the model reads all ids but the last, and all but the first are targets.
        ids, mask = batch["ids"], batch["mask"][:, 1:]
        targets = ids[:, 1:]
        inputs: dict[str, Any] = {"input_ids": ids[:, :-1], "use_cache": False}
        if "positions" in batch:
            inputs["position_ids"] = batch["positions"][:, :-1]
        # With --fused-loss the output layer returns the summed loss where `transformers` expects logits.
        head = _transformer(model).get_output_embeddings()  # type: ignore[operator]
        if isinstance(head, FusedHead):
            with head.with_targets(targets, mask, self.z_loss):
                loss: Tensor = model(**inputs).logits
            return loss
        logits = model(**inputs).logits
        loss = -(log_probabilities(logits, targets) * mask).sum()
        if self.z_loss:
            # Minus itself, detached: the penalty has a gradient, and the reported loss stays plain cross-entropy.
            penalty = (self.z_loss * torch.logsumexp(logits.float(), dim=-1).square() * mask).sum()
            loss = loss + (penalty - penalty.detach())
        return loss

    def denominator(self, batch: Batch) -> Tensor:
        """See `Loss`."""
        return supervised(batch)


token_loss = TokenLoss()


def _transformer(model: nn.Module) -> nn.Module:
    """The `transformers` model inside DeepSpeed's engine and `Autocast`, or `model` itself where it is plain."""
    inner = getattr(model, "module", model)  # DeepSpeed's engine holds it as `module`
    return inner.model if isinstance(inner, Autocast) else inner


class Autocast(nn.Module):
    """The model under autocast: master weights, gradients and their sums stay fp32 whatever the products use."""

    def __init__(self, model: nn.Module, device: str, precision: str) -> None:
        super().__init__()
        self.model, self.device, self.bf16 = model, device, precision == "bf16"

    def forward(self, *arguments: Any, **options: Any) -> Any:
        """The model's output."""
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.bf16):
            return self.model(*arguments, **options)
