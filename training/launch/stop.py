"""Stopping in good order: SIGTERM asks for a checkpoint, which all ranks must save after the same step."""

from __future__ import annotations

import signal
from typing import Any

import torch
import torch.distributed as dist

from training.launch.processes import World


class StopSignal:
    """Notices SIGTERM; the ranks agree on it between two steps, since it does not reach them at the same time."""

    def __init__(self, world: World) -> None:
        self.world, self.received = world, False
        signal.signal(signal.SIGTERM, self._receive)

    def _receive(self, *_: Any) -> None:
        self.received = True

    def agreed(self) -> bool:
        """True on all ranks once one of them received the signal. All ranks call it together."""
        if self.world.size == 1:
            return self.received
        flag = torch.tensor(int(self.received), device=self.world.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag)
