"""Group-relative advantages (GRPO: Shao et al. 2024, DeepSeekMath, section 4.1)."""

from __future__ import annotations

from torch import Tensor

EPSILON = 1e-4  # keeps the advantage of a group with almost equal rewards finite


def advantages(rewards: Tensor) -> tuple[Tensor, Tensor]:
    """Advantages of rewards [questions, samples], and which groups have differing rewards [questions].

    (r - mean) / (std + epsilon) within a group; zero where all of a group scored alike.
    """
    spread = rewards.std(dim=1, unbiased=False)
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    return centred / (spread[:, None] + EPSILON), spread > 0
