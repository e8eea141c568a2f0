"""Pages that hang, crash or eat memory, in Python and in C: each costs its own row, and the next page is read."""

from __future__ import annotations

import ctypes
import hashlib
import multiprocessing
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from time import monotonic, process_time
from typing import Any

import psutil
import pytest

from jobs.page import guard
from jobs.page.guard import Guard, timed


def behave(how: str) -> dict[str, Any]:
    """A page of that kind."""
    if how == "python loop":
        while True:
            try:
                sum(range(1000))
            except Exception:  # what libraries do
                continue
    elif how == "native loop":
        hashlib.pbkdf2_hmac("sha256", b"x", b"y", 2**31 - 1)
    elif how == "system calls":
        while True:
            with suppress(BaseException):
                while True:
                    os.stat("/")
    elif how == "segfault":
        ctypes.string_at(0)
    elif how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "exit":
        os._exit(3)
    elif how == "memory":
        return {"size": len(bytearray(8 << 30))}
    elif how == "native memory":
        found = ctypes.CDLL(None).malloc(ctypes.c_size_t(8 << 30))
        if not found:
            raise ValueError("refused")
    elif how == "defect":
        return {"x": 1 // 0}
    return {"text": how}


@pytest.mark.parametrize(
    ("how", "reason", "detail"),
    [
        ("python loop", "page_timeout", "stopped at the limit of 0.5 CPU seconds"),
        ("native loop", "page_timeout", "stopped at the limit of 0.5 CPU seconds"),
        ("segfault", "page_crash", "the process ended with SIGSEGV"),
        ("killed", "page_crash", "the process ended with SIGKILL"),
        ("exit", "page_crash", "the process ended with exit code 3"),
        ("memory", "page_memory", "more than 2 GiB"),
        ("native memory", "extraction_error", "ValueError('refused')"),
        ("defect", "extraction_error", "ZeroDivisionError('integer division or modulo by zero')"),
    ],
)
def test_each_costs_its_own_row(how: str, reason: str, detail: str) -> None:
    others = psutil.Process().children()
    with Guard(behave, 0.5) as guarded:
        assert guarded("before") == {"text": "before"}
        began = monotonic()
        assert guarded(how) == {"reason": reason, "detail": detail}
        assert monotonic() - began < 20
        assert guarded("after") == {"text": "after"}
    assert psutil.Process().children() == others


@pytest.mark.parametrize("how", ["python loop", "native loop", "system calls"])
def test_no_page_takes_more_cpu_seconds_than_it_may(how: str) -> None:
    before = os.times()
    with Guard(behave, 0.7) as guarded:
        assert guarded(how)["reason"] == "page_timeout"
    after = os.times()  # of children: the one that was waited for
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    assert 0.3 < spent < 0.7 + 0.15


def test_one_child_serves_all_pages_until_one_of_them_made_it_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """However large the worker itself is."""
    held = bytearray(os.urandom(500 << 20))
    with Guard(lambda size: {"pid": os.getpid(), "size": len(os.urandom(size))}, 5) as guarded:
        first = guarded(1)["pid"]
        assert guarded(1)["pid"] == first != os.getpid()
        monkeypatch.setattr(guard, "_PEAK_BYTES", 50 << 20)
        assert guarded(100 << 20)["pid"] == first
        assert guarded(1)["pid"] != first
    assert len(held) == 500 << 20


def test_a_page_that_waits_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_WALL_SECONDS", 0.6)
    with Guard(lambda: time.sleep(60), 50) as guarded:  # type: ignore[arg-type, return-value]
        assert guarded() == {"reason": "page_timeout", "detail": "more than 0.6 seconds"}


def test_why_a_child_ended_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    with Guard(lambda: {"row": lambda: None}, 5) as guarded:  # which cannot be pickled
        assert guarded() == {"reason": "page_crash", "detail": "the process ended with exit code 1"}
    told = capfd.readouterr().err
    assert "Traceback" in told and "pickle" in told


def test_large_rows_cross_the_pipe() -> None:
    with Guard(lambda text: {"text": text}, 5) as guarded:
        assert guarded("x" * 20_000_000)["text"] == "x" * 20_000_000


def test_a_page_that_hangs_does_not_outlive_a_killed_worker() -> None:
    def worker() -> None:
        Guard(lambda: behave("native loop"), 1000)()

    process = multiprocessing.get_context("fork").Process(target=worker)
    process.start()
    children: list[psutil.Process] = []
    while not children:
        time.sleep(0.01)
        children = psutil.Process(process.pid).children()
    process.kill()
    assert not psutil.wait_procs(children, timeout=10)[1]


def test_the_child_holds_no_file_of_the_worker(tmp_path: Path) -> None:
    with (tmp_path / "x").open("w"), Guard(lambda: {"files": sorted(os.listdir("/proc/self/fd"))}, 1) as guarded:
        assert len(guarded()["files"]) <= 5  # the standard ones, the pipe, and the folder being listed


def test_in_this_process_a_page_ends_in_time_though_its_library_catches_exceptions() -> None:
    before = process_time()
    assert timed(lambda: behave("python loop"), 0.2)["reason"] == "page_timeout"
    assert process_time() - before < 3
    assert timed(lambda: {"x": 1}, 0.2) == {"x": 1}
    with pytest.raises(MemoryError):
        timed(lambda: (_ for _ in ()).throw(MemoryError()), 0.2)
