"""Group-relative advantages (GRPO: Shao et al. 2024, DeepSeekMath, section 4.1)."""

from __future__ import annotations

from torch import Tensor

EPSILON = 1e-4  # TRL's: keeps the advantages of a group with almost equal rewards finite


def group_advantages(rewards: Tensor) -> tuple[Tensor, Tensor]:
    """Advantages of rewards [questions, samples], and which groups are informative: their rewards differ [questions].

    (r - mean) / (std + epsilon) within a group; zero if all of a group have the same reward.
    """
    std = rewards.std(dim=1, unbiased=False)
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    return centred / (std[:, None] + EPSILON), std > 0
