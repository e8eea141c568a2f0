"""Cost of a command with all its descendants: CPU and wall seconds, and memory."""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil  # type: ignore[import-untyped]

from bench.folders import HOME

SESSION = [  # the command of a Spark session that does nothing: the fixed cost of every Spark stage
    sys.executable,
    "-c",
    """
from jobs.stage import session
spark = session.spark("empty")
spark.createDataFrame([(1,)], "n long").mapInArrow(lambda batches: batches, "n long").collect()
spark.stop()
""",
]
POLL_SECONDS = 0.1  # a process's clock is lost when it ends: at most so much of each goes uncounted
PR_SET_CHILD_SUBREAPER = 36  # prctl(2)


class Spent(NamedTuple):
    """Seconds of a command: CPU of all its processes, wall, CPU of its JVM; MiB of its largest other process."""

    cpu: float
    wall: float
    jvm: float
    worker: float


def measured(command: Sequence[str | Path], log: Path, environment: Mapping[str, str]) -> Spent:
    """Run a command until its last descendant ends, with its output in `log`. Exits the program with it on failure.

    This process adopts orphans and waits for them, so that rusage includes them. But rusage lacks a process whose
    parent ignores SIGCHLD, such as a worker of Spark's Python daemon; so the CPU clocks of all processes are also
    polled while they run, and the larger of the two sums counts.
    """
    # 1. Become the parent of orphans, and start the command.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    with log.open("w") as stream:
        child = subprocess.Popen(
            command, cwd=HOME, env=os.environ | environment, stdout=stream, stderr=subprocess.STDOUT
        )
    # 2. Poll all clocks until the last process has ended.
    clocks: dict[tuple[int, float], float] = {}  # CPU seconds by process id and start: ids are used again
    java: dict[tuple[int, float], float] = {}
    largest = 0
    status = ended = 0
    while True:
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                times, key = process.cpu_times(), (process.pid, process.create_time())
                memory = process.memory_info().rss  # before the name: a shell may become a JVM between both
                clocks[key] = times.user + times.system
                if process.name() == "java":
                    java[key] = clocks[key]
                else:
                    largest = max(largest, memory)
        try:
            ended, exit_status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:  # no child is left
            break
        status = exit_status if ended == child.pid else status
        if not ended:
            time.sleep(POLL_SECONDS)
    # 3. The exit status, which Popen cannot see: its child was reaped above.
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{log.read_text()[-5000:]}\n{log.stem} ended with {child.returncode}")
    # 4. The larger of both sums.
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    waited = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    cpu, wall = max(waited, sum(clocks.values())), time.monotonic() - began
    print(f"{log.stem}: {cpu:.1f} CPU s, {wall:.1f} s", file=sys.stderr, flush=True)
    return Spent(cpu, wall, sum(java.values()), largest / 2**20)
