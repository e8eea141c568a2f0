"""Parts as Spark tasks: who tells that it works is left to work."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.stage import parts
from jobs.stage.parts import Part
from pipeline import artifact
from pipeline.artifact import Building, Identity, Stage
from pipeline.errors import InputError, StorageError
from pipeline.storage import Storage

IDLE, TURNS = 6, 12


def slow(part: Part) -> Iterator[dict[str, Any]]:
    """Longer than a worker may be silent, and never silent so long."""
    for _ in range(TURNS):
        time.sleep(IDLE / 5)
        yield parts.ALIVE
    yield {"commit": {"turns": TURNS}}


def test_a_part_may_take_longer_than_a_worker_may_be_silent(tmp_path: Path, spark: Any) -> None:
    building = artifact.start(Storage(tmp_path), "test", Identity(Stage("slow", 1, ()), {}, 1, []))
    assert isinstance(building, Building)
    name = "spark.sql.execution.pyspark.udf.idleTimeoutSeconds"
    before = spark.conf.get(name)
    spark.conf.set(name, str(IDLE))
    try:
        records = parts.run_parts(spark, building, [Part("00000")], slow)
    finally:
        spark.conf.set(name, before)
    assert records["00000"]["turns"] == TURNS


def test_of_several_parts_that_failed_the_first_is_raised_and_the_others_are_named() -> None:
    states = {name: json.dumps([kind, f"{name} broke", "mend it"]) for name, kind in (("b", "InputError"),)}
    alone = parts.failure(states)
    assert type(alone) is InputError and (alone.what, alone.remedy) == ("b broke", "mend it")
    states |= {f"c{number:02d}": json.dumps(["InputError", "broke", "mend it"]) for number in range(30)}
    several = parts.failure(states | {"a": json.dumps(["StorageError", "a is full", "make room"])})
    assert type(several) is StorageError and several.remedy == "make room"
    assert several.what.startswith("a is full\npart a is one of 32 parts that failed; the others: b, c00, c01")
    assert several.what.endswith("c18, …")


def test_a_step_whose_parts_are_all_committed_starts_no_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    building = artifact.start(Storage(tmp_path), "test", Identity(Stage("slow", 1, ()), {}, 1, []))
    assert isinstance(building, Building)
    building.commit("00000", {"turns": 1, "cpu_seconds": 2.0})
    monkeypatch.setattr("jobs.stage.session.spark", lambda _name: pytest.fail("a session was started"))
    records, seconds = parts.run_step("slow", building, [Part("00000")], slow)
    assert (records["00000"]["turns"], seconds) == (1, 2.0)
    building.uncommit("00000")
    assert parts.waiting(building, [Part("00000")]) == [Part("00000")]
