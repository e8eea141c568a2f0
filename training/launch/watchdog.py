"""A launch that hangs reports where, and ends; one with a slow rank reports which.

All ranks wait for the slowest, so a hang looks alike everywhere but at its cause. If a step takes too long, each rank
posts its stack in the launch's store and prints the stacks of all. A rank that posts nothing is named: its process, or
its machine, is stopped.
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

GRACE = 10.0  # seconds for the ranks to post their stacks: they began to wait at about the same time
SLOW = 1.5  # times the fastest rank's seconds, from which on a rank counts as slow: equal machines differ by less
_LINES = 30  # innermost lines of a stack: a collective lies some twenty below our code


class Timer:
    """Seconds a rank spends within `with`: around forward passes, its own work.

    Below ZeRO 3 a forward pass waits for no other rank; backward does, so it takes as long on all ranks.
    """

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

    def elapsed(self) -> float:
        """Seconds since the last call. On a GPU it waits for the recorded kernels, which run behind the CPU."""
        pairs = list(zip(self._marks[::2], self._marks[1::2], strict=True))
        self._marks = []
        if self._gpu and pairs:
            pairs[-1][1].synchronize()
            return sum(float(begin.elapsed_time(end)) for begin, end in pairs) / 1000
        return float(sum(end - begin for begin, end in pairs))


def stragglers(world: World, seconds: Sequence[float]) -> list[str]:
    """A warning for each rank whose forward passes took much longer than the fastest rank's; `seconds` by rank."""
    fastest = min(seconds)
    return [
        f"rank {rank} on {world.hosts[rank][0]} is slow, and all others wait for it: its forward passes took "
        f"{own / fastest:.1f} times the seconds of the fastest rank"
        for rank, own in enumerate(seconds)
        if fastest and own > SLOW * fastest
    ]


class Watchdog:
    """Ends the process with exit code 8 if `beat` is not called for `seconds`; used as a context."""

    def __init__(self, world: World, seconds: float) -> None:
        self.world, self.seconds = world, seconds
        self._step, self._last_beat = 0, time.monotonic()
        self._ended = threading.Event()
        self._main = threading.main_thread().ident
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._last_beat = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()

    def beat(self, step: int) -> None:
        """Note that this rank makes progress and works on `step`."""
        self._step, self._last_beat = step, time.monotonic()

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self.seconds / 4)):
            if time.monotonic() - self._last_beat > self.seconds:
                # The report may hang too: rank 0's process, which holds the store, may be the one that is stopped.
                timer = threading.Timer(3 * GRACE, os._exit, (NodeError.exit_code,))
                timer.daemon = True
                timer.start()
                self._report()
                os._exit(NodeError.exit_code)  # not sys.exit, which would end this thread alone

    def _report(self) -> None:
        """Print this rank's stack; then, once all had time to post theirs, those of the others."""
        own = "".join(traceback.format_stack(sys._current_frames()[self._main or 0])[-_LINES:])
        what = f"rank {self.world.rank}: step {self._step} takes more than {self.seconds:g} s"
        print(f"error: {what}\n{own}", file=sys.stderr, flush=True)
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
