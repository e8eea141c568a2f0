"""The archive of Spark's classes: a session maps it, and Airflow on this machine asks for the same one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.stage import session
from local.airflow import Installation
from tests.jobs.conftest import REPOSITORY


def test_a_session_maps_the_classes_that_setup_left(spark: Any) -> None:
    if not session.CLASSES.exists():
        pytest.skip("python -m jobs.commands.prebuild was not run")
    started = spark.sparkContext._gateway.proc
    assert str(session.CLASSES) in Path(f"/proc/{started.pid}/maps").read_text()


def test_airflow_starts_sessions_with_the_same_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPARK_SUBMIT_OPTS", raising=False)
    monkeypatch.delenv("SPARK_DRIVER_MEMORY", raising=False)
    given = Installation(REPOSITORY, str(tmp_path), 8496, tmp_path / "airflow").environment()["SPARK_SUBMIT_OPTS"]
    assert given == f"{session.SMALL_JVM} {session.SHARED_CLASSES}"
