"""Next-token cross-entropy without all logits at once: an output layer that computes the loss of its targets.

The logits of a model with 50,000 ids take more memory than its layers. Here they exist for one chunk of tokens at a
time; the gradients of that chunk, which need them, are computed in the forward pass, and backward merely scales them.
So there is no matrix product more than without chunks (the idea: Liger Kernel, Hsu et al. 2024, section 3.2).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import StageError

# Bytes of a chunk's fp32 logits: on a CPU what its caches hold, on a GPU enough work for one kernel launch.
CHUNK_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}


class FusedHead(nn.Linear):
    """The output layer of a causal LM. Within `with_targets`, its output is the loss of the targets, not logits."""

    _targets: tuple[Tensor, Tensor, float] | None = None

    @classmethod
    def install(cls, model: nn.Module) -> None:
        """Replace the output layer of a `transformers` causal LM by one that shares its weight."""
        head: Any = model.get_output_embeddings()  # type: ignore[operator]
        config: Any = model.config
        if not isinstance(head, nn.Linear) or head.bias is not None or getattr(config, "final_logit_softcapping", None):
            raise StageError(
                f"--fused-loss computes the loss from the output layer's matrix alone, and that of "
                f"{type(model).__name__} is more than one matrix (a bias, or logits that are capped)",
                "start without --fused-loss",
            )
        # Built with one number, not with a matrix: the weight is the model's own, which may be tied to its embeddings.
        fused = cls(1, 1, bias=False)
        fused.in_features, fused.out_features, fused.weight = head.in_features, head.out_features, head.weight
        model.set_output_embeddings(fused)  # type: ignore[operator]

    @contextmanager
    def with_targets(self, targets: Tensor, mask: Tensor, z_loss: float) -> Iterator[None]:
        """Compute the loss of `targets` [rows, n], where `mask` [rows, n] is 1, in the forward passes within."""
        self._targets = (targets, mask, z_loss)
        try:
            yield
        finally:
            self._targets = None

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits of `hidden` [rows, n, hidden size]; or the summed loss, a scalar."""
        if self._targets is None:
            return super().forward(hidden)
        targets, mask, z_loss = self._targets
        loss: Tensor = _Loss.apply(hidden.flatten(0, 1), self.weight, targets.flatten(), mask.flatten().float(), z_loss)  # type: ignore[no-untyped-call]
        return loss


class _Loss(torch.autograd.Function):
    """Sum of mask x cross-entropy in nats. Its gradient is that of the loss with z-loss, its value is without."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, mask: Tensor, z_loss: float) -> Tensor:
        """`hidden` [tokens, hidden size], `weight` [vocabulary, hidden size], `targets` and `mask` [tokens]."""
        # 1. Matrix products in autocast's dtype, as torch would choose it; sums and softmax in fp32.
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        # 2. Room for the gradients, of which evaluation needs none.
        needs_gradient = any(ctx.needs_input_grad)
        d_hidden = torch.empty_like(hidden) if needs_gradient else None
        d_weight = torch.zeros_like(weight) if needs_gradient else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        tokens = max(1, CHUNK_BYTES[device] // (4 * weight.shape[0]))  # per chunk; 4 bytes per logit
        # 3. Chunk by chunk: logits [tokens, vocabulary], their loss, and the gradients that need them. Autocast is off,
        # since the dtypes are chosen above.
        with torch.autocast(device, enabled=False):
            matrix = weight.to(dtype)
            for start in range(0, len(hidden), tokens):
                chunk = hidden[start : start + tokens].to(dtype)
                chunk_targets, chunk_mask = targets[start : start + tokens, None], mask[start : start + tokens]
                logits = F.linear(chunk, matrix).float()
                logsumexp = torch.logsumexp(logits, dim=-1)
                total += ((logsumexp - logits.gather(1, chunk_targets)[:, 0]) * chunk_mask).sum()
                if d_hidden is None or d_weight is None:
                    continue
                # d loss / d logits = softmax x (1 + 2 z logsumexp) - one-hot, in the logits' own memory.
                d_logits = logits.sub_(logsumexp[:, None]).exp_()
                if z_loss:
                    d_logits.mul_((1 + 2 * z_loss * logsumexp)[:, None])
                d_logits.scatter_add_(1, chunk_targets, -torch.ones_like(chunk_targets, dtype=d_logits.dtype))
                d_logits = d_logits.mul_(chunk_mask[:, None]).to(dtype)
                d_hidden[start : start + tokens] = d_logits @ matrix
                if dtype == d_weight.dtype:
                    d_weight.addmm_(d_logits.T, chunk)  # without a second matrix of the weight's size
                else:
                    d_weight += d_logits.T @ chunk
        if d_hidden is not None and d_weight is not None:
            ctx.save_for_backward(d_hidden, d_weight)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """The loss is a scalar, so its incoming gradient is one number that scales those of the forward pass."""
        d_hidden, d_weight = ctx.saved_tensors
        return d_hidden * gradients[0], d_weight * gradients[0], None, None, None
