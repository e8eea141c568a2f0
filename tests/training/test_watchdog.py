"""Slow ranks and hanging ones are named; the cases with two machines are in test_nodes.py."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pipeline.errors import NodeError
from tests.training.pretraining import publish, small
from tests.training.support import finish, stage_ranks, wait_for_step
from training.launch.processes import World
from training.launch.watchdog import Timer, Watchdog, stragglers

WORLD = World(0, 0, 3, 3, torch.device("cpu"), (("a", "10.0.0.1"), ("b", "10.0.0.2"), ("c", "10.0.0.3")))
HANG = """
import time, torch
from training.launch.processes import World
from training.launch.watchdog import Watchdog
def stuck_in_a_kernel():
    time.sleep(60)
with Watchdog(World(0, 0, 1, 1, torch.device("cpu")), 0.5) as watchdog:
    for step in range(1, 6):
        watchdog.beat(step)
        time.sleep(0.2)
    stuck_in_a_kernel()
"""


def test_a_process_that_hangs_ends_with_its_stack() -> None:
    done = subprocess.run([sys.executable, "-c", HANG], capture_output=True, text=True, timeout=50)
    assert done.returncode == NodeError.exit_code
    assert "rank 0: step 5 takes more than 0.5 s" in done.stderr and "in stuck_in_a_kernel" in done.stderr


def test_a_watchdog_with_regular_beats_does_nothing_and_ends_with_its_context() -> None:
    with Watchdog(World(0, 0, 1, 1, torch.device("cpu")), 0.6) as watchdog:
        for step in range(4):
            watchdog.beat(step)
            time.sleep(0.3)
    time.sleep(0.9)  # it would have ended this process


def test_the_timer_counts_what_is_within() -> None:
    timer = Timer(torch.device("cpu"))
    for _ in range(3):
        with timer:
            time.sleep(0.02)
        time.sleep(0.2)
    assert timer.elapsed() == pytest.approx(0.06, abs=0.05)
    assert timer.elapsed() == 0.0


@pytest.mark.slow
def test_a_rank_that_is_held_up_is_named(tmp_path: Path) -> None:
    path = small(tmp_path, steps=60, evaluate_every=20, checkpoint_every=60)
    publish(tmp_path, path)
    running = stage_ranks(2, "pretrain.py", tmp_path, path)
    wait_for_step(tmp_path, "pretrain", 5, running)
    while running[1].poll() is None:  # of each 0.12 seconds, the process gets 0.02
        running[1].send_signal(signal.SIGSTOP)
        time.sleep(0.1)
        running[1].send_signal(signal.SIGCONT)
        time.sleep(0.02)
    assert "rank 1 on " in (output := finish(running)) and " times the seconds of the fastest rank" in output


def test_slow_ranks_are_named() -> None:
    assert stragglers(WORLD, [1.0, 1.4, 1.1]) == []
    warning = (
        "rank 1 on b is slow, and all others wait for it: its forward passes took 2.5 times the seconds of the fastest "
        "rank"
    )
    assert stragglers(WORLD, [1.0, 2.5, 1.1]) == [warning]
    assert stragglers(WORLD, [0.0, 0.0, 0.0]) == []
