"""The archive of Spark's classes: a session maps it where it is, and starts without it where it is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs import session


def test_a_session_maps_the_classes_that_setup_left(spark: Any) -> None:
    if not session.CLASSES.exists():
        pytest.skip("python -m jobs.prebuild was not run")
    started = spark.sparkContext._gateway.proc
    assert str(session.CLASSES) in Path(f"/proc/{started.pid}/maps").read_text()
