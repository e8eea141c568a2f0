"""A child process of a task: its output goes to the log, and it never outlives the task."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

_PR_SET_PDEATHSIG = 1  # prctl(2)


class Child:
    """Runs `command` in a process group of its own, in the session of its parent.

    Airflow kills a task that does not end within 5 s of SIGTERM. Then the kernel sends SIGTERM to the child (Linux),
    which ends its own processes.
    """

    def __init__(self, command: Sequence[str], folder: str, environment: Mapping[str, str]) -> None:
        self.command = list(command)
        self._process = subprocess.Popen(
            self.command,
            cwd=folder,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,
            preexec_fn=die_with_parent,
        )

    def wait(self, log: Callable[[str], None]) -> int:
        """Pass every line to `log` until the child ends; returns its exit code (negative: the signal that ended it)."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            log(line.decode(errors="replace").rstrip())
        return self._process.wait()

    def request_stop(self) -> None:
        """Send SIGTERM to the child alone: a launcher passes it on to its ranks, which save a checkpoint."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def stop(self, seconds: float) -> None:
        """Send SIGTERM, wait at most `seconds`, then kill the whole process group."""
        self.request_stop()
        until = time.monotonic() + seconds
        while self._process.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()


def die_with_parent() -> None:
    """Let the kernel send SIGTERM to this process when its parent ends (on Linux; does nothing elsewhere)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
