"""Processes a page in a child process: a page that hangs, crashes or exhausts memory costs its own row, and no other.

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
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from pipeline.terminal import plain

Row = dict[str, Any]

_TIMER_SHARE = 0.95  # of the limit, when a signal ends Python code, which spares a fork; at the limit it is killed
_REARM_SHARE = 0.02  # of the limit, when the signal is sent again: an exception raised in a C callback is swallowed
_WALL_SECONDS = 100.0  # for a child that waits; less than the time after which Spark kills a silent worker
_POLL_SECONDS = 0.5
_TICK_SECONDS = 0.01  # resolution of the kernel's CPU time of a process
_SPACE_BYTES = 2 << 30  # address space that a page may use beyond the worker's own
_PEAK_BYTES = 400 << 20  # growth after which a child is replaced: parsers do not return memory to the system
_PR_SET_PDEATHSIG = 1  # prctl(2)


class _TooSlow(BaseException):
    """Not an `Exception`: trafilatura and its helpers catch those of their steps and continue."""


def timed(work: Callable[[], Row], seconds: float) -> Row:
    """What `work` returns, or a row with the reason why it did not return: `page_timeout` (95 % of `seconds` of this
    process' CPU time are spent), `extraction_error` (it raised).

    Only in the main thread. C code is interrupted when it returns to Python; `Guard` also ends code that does not.
    """

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise _TooSlow

    before = signal.signal(signal.SIGPROF, stop)
    try:
        try:
            signal.setitimer(signal.ITIMER_PROF, seconds * _TIMER_SHARE, seconds * _REARM_SHARE)
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
    """Calls `work` in a forked child, one call after another; a child that was lost is forked anew.

    A child is killed, whatever it does, when a call has taken `seconds` of CPU time. Where `work` returns no row, the
    row has a reason of `timed`, or `page_crash` (the child died), or `page_memory` (it used more than 2 GiB beyond this
    process' own). Arguments and rows are pickled.
    """

    def __init__(self, work: Callable[..., Row], seconds: float) -> None:
        self._work, self._seconds = work, seconds
        self._child: int | None = None
        self._spent = 0.0  # CPU seconds of the child when this call began

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
            # Until `left` seconds have passed, the child cannot have spent them.
            while not self._pipe.poll(min(_POLL_SECONDS, max(_TICK_SECONDS, left))):
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
        whole: Row = row
        return whole

    def close(self) -> int:
        """End the child. Returns its wait status, 0 where there is none."""
        if self._child is None:
            return 0
        child, self._child = self._child, None
        self._pipe.close()
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        return os.waitpid(child, 0)[1]

    def _fork(self) -> None:
        self._pipe, child_pipe = multiprocessing.Pipe()
        parent = os.getpid()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                self._serve(child_pipe, parent)
                status = 0
            except BaseException:  # a defect of ours, or a row that cannot be sent: its page is a crash
                os.write(
                    2, plain(traceback.format_exc()).encode(errors="replace")
                )  # the worker's `sys.stderr` may be a file closed here
            finally:
                os._exit(status)  # not through the worker's own handlers
        child_pipe.close()
        self._child, self._spent = child, 0.0

    def _serve(self, pipe: Any, parent: int) -> None:
        """The child: call `work` for each message, and answer with (row, CPU seconds so far, growth in bytes)."""
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # else a page that hangs outlives a killed worker
        if os.getppid() != parent:  # the worker was killed before that call
            return
        for name in os.listdir("/proc/self/fd"):  # held open, the worker's sockets would outlive it
            if int(name) > 2 and int(name) != pipe.fileno():
                with suppress(OSError):
                    os.close(int(name))
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + _SPACE_BYTES, held + _SPACE_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB; a child begins with the worker's
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
    """CPU seconds of a process so far; 0 for one that has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # proc(5): utime and stime, fields 14 and 15


def _described(status: int) -> str:
    """A wait status in words: the signal's name, or the exit code."""
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return f"exit code {os.WEXITSTATUS(status)}"
