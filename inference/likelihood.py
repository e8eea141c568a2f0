"""Log-probabilities of tokens under a model, and how many logits fit into memory at a time."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

# Bytes that the fp32 logits of a micro-batch may take: on a CPU what its caches hold (measured), on a GPU a share of
# its memory.
LOGIT_BYTES = {"cpu": 16 << 20, "cuda": 2 << 30}


def log_probabilities(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probability of each target, by fp32 log-softmax: logits [rows, n, vocabulary], targets [rows, n]."""
    flat = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
    return -flat.view(targets.shape)
