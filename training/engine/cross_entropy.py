"""Next-token cross-entropy without all logits at once: an output layer that is told its targets.

The logits of a model with 50,000 ids take more memory than its layers. Here they exist for a chunk of tokens only; the
gradients of that chunk, for which they are needed, are made at once, and backward merely scales them. So there is not
even a product more than without chunks (the idea: Liger Kernel, Hsu et al. 2024, section 3.2).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import StageError

CHUNK_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}  # of a chunk's fp32 logits: what a cache holds; enough work a kernel


class FusedHead(nn.Linear):
    """The output layer of a causal LM. Within `told`, its output is the loss of the targets, not logits."""

    _told: tuple[Tensor, Tensor, float] | None = None

    @classmethod
    def into(cls, model: nn.Module) -> None:
        """Replace the output layer of a `transformers` causal LM by one that shares its weight."""
        head: Any = model.get_output_embeddings()  # type: ignore[operator]
        config: Any = model.config
        if not isinstance(head, nn.Linear) or head.bias is not None or getattr(config, "final_logit_softcapping", None):
            raise StageError(
                f"the output layer of {type(model).__name__} is more than one matrix", "start without --fused-loss"
            )
        made = cls(1, 1, bias=False)
        made.in_features, made.out_features, made.weight = head.in_features, head.out_features, head.weight
        model.set_output_embeddings(made)  # type: ignore[operator]

    @contextmanager
    def told(self, targets: Tensor, mask: Tensor, z_loss: float) -> Iterator[None]:
        """Targets [rows, n], and the mask [rows, n] of those that count, for the forward passes within."""
        self._told = (targets, mask, z_loss)
        try:
            yield
        finally:
            self._told = None

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits of `hidden` [rows, n, width]; or the summed loss, as a number without dimensions."""
        if self._told is None:
            return super().forward(hidden)
        targets, mask, z_loss = self._told
        loss: Tensor = _Loss.apply(hidden.flatten(0, 1), self.weight, targets.flatten(), mask.flatten().float(), z_loss)  # type: ignore[no-untyped-call]
        return loss


class _Loss(torch.autograd.Function):
    """Sum of mask x cross-entropy in nats. Its gradient is that of the loss with z-loss, its value is without."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, mask: Tensor, z_loss: float) -> Tensor:
        device = hidden.device.type
        low = torch.is_autocast_enabled(device)
        products = torch.get_autocast_dtype(device) if low else hidden.dtype
        learns = any(ctx.needs_input_grad)
        rows = max(1, CHUNK_BYTES[device] // (4 * weight.shape[0]))
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        d_hidden = torch.empty_like(hidden) if learns else None
        d_weight = torch.zeros_like(weight) if learns else None
        with torch.autocast(device, enabled=False):
            matrix = weight.to(products)
            for at in range(0, len(hidden), rows):
                part = hidden[at : at + rows].to(products)
                wanted, counts = targets[at : at + rows, None], mask[at : at + rows]
                logits = F.linear(part, matrix).float()
                sums = torch.logsumexp(logits, dim=-1)
                total += ((sums - logits.gather(1, wanted)[:, 0]) * counts).sum()
                if d_hidden is None or d_weight is None:
                    continue
                # d loss / d logits = softmax x (1 + 2 z logsumexp) - one-hot, in the logits' own memory.
                slope = logits.sub_(sums[:, None]).exp_()
                if z_loss:
                    slope.mul_((1 + 2 * z_loss * sums)[:, None])
                slope.scatter_add_(1, wanted, -torch.ones_like(wanted, dtype=slope.dtype))
                slope = slope.mul_(counts[:, None]).to(products)
                d_hidden[at : at + rows] = slope @ matrix
                if products == d_weight.dtype:
                    d_weight.addmm_(slope.T, part)
                else:
                    d_weight += slope.T @ part
        if d_hidden is not None and d_weight is not None:
            ctx.save_for_backward(d_hidden, d_weight)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        d_hidden, d_weight = ctx.saved_tensors
        return d_hidden * gradients[0], d_weight * gradients[0], None, None, None
