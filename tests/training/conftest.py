"""One thread per process: the models here are tiny, and two threads on a busy machine only wait for each other."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `training.launch.processes` share the cores among so many processes, in this one and in ranks it starts."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1024")
