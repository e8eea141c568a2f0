"""A launch that hangs says where, and ends; one that a slow rank holds up says which.

All ranks wait for the slowest, so a hang looks alike everywhere but at its cause. Where a step takes too long, each
rank posts its stack; rank by rank they are printed, and who posts nothing is named: that process, or its machine, is
stopped.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist

from pipeline.errors import NodeError
from training.launch.processes import World

GRACE = 10.0  # seconds in which the ranks, who began to wait at about the same time, post their stacks
SLOW = 1.5  # times the fastest rank's seconds: more than equal machines differ
_LINES = 30  # innermost, of a stack: a collective lies some twenty below our code


class Laps:
    """Seconds a rank spends in forward passes: its own work, which waits for nobody below stage 3 of ZeRO."""

    def __init__(self, device: torch.device) -> None:
        self._gpu = device.type == "cuda"
        self._marks: list[Any] = []

    def __enter__(self) -> None:
        self._mark()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._mark()

    def _mark(self) -> None:
        if self._gpu:
            event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def taken(self) -> float:
        """Since the last call; on a GPU, it waits for what was recorded."""
        pairs = list(zip(self._marks[::2], self._marks[1::2], strict=True))
        self._marks = []
        if self._gpu and pairs:
            pairs[-1][1].synchronize()
            return sum(float(begin.elapsed_time(end)) for begin, end in pairs) / 1000
        return float(sum(end - begin for begin, end in pairs))


def stragglers(world: World, seconds: Sequence[float]) -> list[str]:
    """What to say of ranks whose forward passes took much longer than the fastest rank's."""
    least = min(seconds)
    return [
        f"rank {rank} on {world.hosts[rank][0]} is slow: {each / least:.1f} times the seconds of the fastest rank"
        for rank, each in enumerate(seconds)
        if least and each > SLOW * least
    ]


class Watchdog:
    """Ends the process with exit code 8 where `beat` is not called for `seconds`; for use with `with`."""

    def __init__(self, world: World, seconds: float) -> None:
        self.world, self.seconds = world, seconds
        self._step, self._at = 0, time.monotonic()
        self._over = threading.Event()
        self._main = threading.main_thread().ident
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._at = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()

    def beat(self, step: int) -> None:
        """Say that this rank is alive and works on `step`."""
        self._step, self._at = step, time.monotonic()

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self.seconds / 4)):
            if time.monotonic() - self._at > self.seconds:
                # Whatever the store does: the process of rank 0, which holds it, may be the one that hangs.
                timer = threading.Timer(3 * GRACE, os._exit, (NodeError.exit_code,))
                timer.daemon = True
                timer.start()
                self._report()
                os._exit(NodeError.exit_code)

    def _report(self) -> None:
        own = "".join(traceback.format_stack(sys._current_frames()[self._main or 0])[-_LINES:])
        error = NodeError(f"rank {self.world.rank}: step {self._step} takes more than {self.seconds:g} s", "see below")
        print(f"error: {error.what}\n{own}", file=sys.stderr, flush=True)
        if self.world.size == 1:
            return
        store: Any = dist.distributed_c10d._get_default_store()
        store.set(f"hang/{self.world.rank}", json.dumps([self._step, own]))
        time.sleep(GRACE)
        lines = []
        for rank, (host, _) in enumerate(self.world.hosts):
            name = f"hang/{rank}"
            if not store.check([name]):
                lines.append(f"rank {rank} on {host} does not answer: that process or its machine is stopped")
            elif rank != self.world.rank:
                step, stack = json.loads(store.get(name))
                lines.append(f"rank {rank} on {host} is at step {step}:\n{stack}")
        print("\n".join(lines), file=sys.stderr, flush=True)
