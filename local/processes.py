"""The processes of a kernel session (Linux): starting one, listing them, and stopping it so that none of them is left.

SIGTERM to `airflow standalone` alone leaves its parts running, and those start sessions of their own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

STOP_SECONDS = 15.0


@contextmanager
def started(
    command: Sequence[str | Path], folder: Path, log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in a session of its own, its output in `log`; all its processes are stopped when the block ends."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        stop_session(process.pid)
        process.wait()


def members(session: int) -> list[int]:
    """Ids of the processes of a session and of all their descendants, without zombies."""
    pids: set[int] = set()
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # pid (name) state ppid pgrp session …; the name may contain anything, even parentheses.
                state, parent, _, sid = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            except OSError:  # it ended meanwhile
                continue
            if state == "Z":
                continue
            parents[int(entry.name)] = int(parent)
            if int(sid) == session:
                pids.add(int(entry.name))
    while children := {pid for pid, parent in parents.items() if parent in pids} - pids:
        pids |= children
    return sorted(pids)


def stop_session(session: int, seconds: float = STOP_SECONDS) -> None:
    """Send SIGTERM to all processes of the session, and SIGKILL to those that are left after `seconds`."""
    _signal(session, signal.SIGTERM)
    until = time.monotonic() + seconds
    while members(session) and time.monotonic() < until:
        time.sleep(0.1)
    while members(session):  # a process may start another one before it is killed
        _signal(session, signal.SIGKILL)
        time.sleep(0.05)


def _signal(session: int, number: signal.Signals) -> None:
    for pid in members(session):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
