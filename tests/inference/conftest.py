"""One thread per process: the models here are tiny, and two threads on a busy machine only wait for each other."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """`training.launch.processes` divides the cores by LOCAL_WORLD_SIZE, which processes of a test inherit."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1024")
