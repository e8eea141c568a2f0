"""A page's work in a process of its own: a page that hangs, crashes or eats memory costs its own row, and no other.

with Guard(read, seconds=10) as read_guarded:
    row = read_guarded(payload)
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

Row = dict[str, Any]

_OWN_SHARE = 0.95  # of the limit, after which Python code ends itself, which spares a fork; at the limit it is killed
_AGAIN_SHARE = 0.02  # of the limit, after which it is told again: a callback from C loses an exception
_WALL_SECONDS = 100.0  # a child that waits for something; less than the time after which Spark kills a silent worker
_LOOK_SECONDS = 0.5
_TICK_SECONDS = 0.01  # of the kernel's account of a process
_SPACE_BYTES = 2 << 30  # address space that a page may take beyond what the worker holds
_PEAK_BYTES = 400 << 20  # a child that ever grew so much makes room for a fresh one (parsers do not give back)
_PR_SET_PDEATHSIG = 1  # prctl(2)


class _TooSlow(BaseException):
    """Not an `Exception`: trafilatura and its helpers catch those of their steps and go on."""


def timed(work: Callable[[], Row], seconds: float) -> Row:
    """What `work` returns, or a row with the reason why it did not: `page_timeout` (after 95 % of so much CPU time of
    this process), `extraction_error` (a defect met in the page).

    Only in the main thread. Code in C is interrupted when it comes back to Python: see `Guard` for code that does not.
    """

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise _TooSlow

    before = signal.signal(signal.SIGPROF, stop)
    try:
        try:
            signal.setitimer(signal.ITIMER_PROF, seconds * _OWN_SHARE, seconds * _AGAIN_SHARE)
            return work()
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    except _TooSlow:
        signal.setitimer(signal.ITIMER_PROF, 0)
        return _too_slow(seconds)
    except MemoryError:
        raise
    except Exception as error:
        return {"reason": "extraction_error", "detail": repr(error)[:500]}
    finally:
        signal.signal(signal.SIGPROF, before)


def _too_slow(seconds: float) -> Row:
    return {"reason": "page_timeout", "detail": f"stopped at the limit of {seconds:g} CPU seconds"}


class Guard:
    """Calls `work` in a forked child, one call after the other; the child is forked again where it was lost.

    A call may take `seconds` of CPU time: then it is killed, whatever it does.

    Rows that `work` never made have the reasons of `timed`, and besides `page_crash` (the child died) and
    `page_memory` (more than 2 GiB beyond what this process holds). Arguments and rows are pickled.
    """

    def __init__(self, work: Callable[..., Row], seconds: float) -> None:
        self._work, self._seconds = work, seconds
        self._child: int | None = None
        self._spent = 0.0  # CPU seconds of the child when it began with this page

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __call__(self, *arguments: Any) -> Row:
        if self._child is None:
            self._fork()
        began = time.monotonic()
        try:
            self._pipe.send(arguments)
            left = self._seconds
            while not self._pipe.poll(min(_LOOK_SECONDS, max(_TICK_SECONDS, left))):  # it cannot spend more meanwhile
                left = self._seconds - (cpu_seconds(self._child) - self._spent)
                if left <= 0:
                    self.close()
                    return _too_slow(self._seconds)
                if time.monotonic() - began > _WALL_SECONDS:
                    self.close()
                    return {"reason": "page_timeout", "detail": f"more than {_WALL_SECONDS:g} seconds"}
            row, self._spent, peak = self._pipe.recv()
        except (EOFError, OSError):
            return {"reason": "page_crash", "detail": f"the process ended with {_described(self.close())}"}
        if peak > _PEAK_BYTES or row.get("reason") == "page_memory":
            self.close()
        found: Row = row
        return found

    def close(self) -> int:
        """End the child; its wait status."""
        if self._child is None:
            return 0
        child, self._child = self._child, None
        self._pipe.close()
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        return os.waitpid(child, 0)[1]

    def _fork(self) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        parent = os.getpid()
        child = os.fork()
        if child == 0:
            try:
                self._serve(theirs, parent)
            finally:
                os._exit(0)
        theirs.close()
        self._child, self._spent = child, 0.0

    def _serve(self, pipe: Any, parent: int) -> None:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # or a page that hangs outlives a killed worker
        if os.getppid() != parent:
            return
        for name in os.listdir("/proc/self/fd"):  # the worker's sockets are its own
            if int(name) > 2 and int(name) != pipe.fileno():
                with suppress(OSError):
                    os.close(int(name))
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + _SPACE_BYTES, held + _SPACE_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # what the worker holds, the child holds too
        while True:
            try:
                arguments = pipe.recv()
            except (EOFError, OSError):
                return
            try:
                row = timed(lambda arguments=arguments: self._work(*arguments), self._seconds)  # type: ignore[misc]
            except MemoryError:
                row = {"reason": "page_memory", "detail": f"more than {_SPACE_BYTES >> 30} GiB"}
            used = resource.getrusage(resource.RUSAGE_SELF)
            pipe.send((row, used.ru_utime + used.ru_stime, (used.ru_maxrss - began) * 1024))


def cpu_seconds(process: int | None) -> float:
    """CPU seconds of a process so far; none of one that is gone."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # proc(5): utime and stime, fields 14 and 15


def _described(status: int) -> str:
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return f"exit code {os.WEXITSTATUS(status)}"
