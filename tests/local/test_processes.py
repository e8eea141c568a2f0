"""Nothing is left of a session that was stopped."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from local.processes import members, started, stop_session
from tests.local.runs import LONGEST, until

STUBBORN = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for _ in range(2):
    if os.fork() == 0:
        os.setpgid(0, 0)
        break
os.write(1, b"ready\\n")
time.sleep(600)
"""


@pytest.fixture
def session():
    process = subprocess.Popen(
        [sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    for _ in range(3):
        assert process.stdout.readline() == "ready\n"
    yield process
    stop_session(process.pid, 0)
    process.wait()
    process.stdout.close()


def test_a_stopped_session_leaves_no_process_even_of_those_that_ignore_it(session):
    assert len(members(session.pid)) == 3
    stop_session(session.pid, seconds=0.5)
    assert members(session.pid) == []


def test_a_session_that_obeys_is_not_waited_for():
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    began = time.monotonic()
    stop_session(process.pid, LONGEST)
    assert time.monotonic() - began < LONGEST
    assert process.wait() == -signal.SIGTERM


def test_what_is_started_writes_its_log_and_is_stopped_with_all_it_started(tmp_path):
    log = tmp_path / "state" / "log"
    with started(["sh", "-c", "sleep 600 & echo ready; wait"], tmp_path, log) as process:
        until(lambda: log.read_text() == "ready\n", 0.05)
        assert len(members(process.pid)) == 2
    assert process.returncode == -signal.SIGTERM and members(process.pid) == []
