"""One thread a process: the models here are tiny, and two threads on a busy machine only wait for each other."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """`training.launch.processes` shares the cores among so many processes; test processes that start inherit it."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1024")
