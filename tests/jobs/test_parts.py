"""Parts as Spark tasks: who tells that it works is left to work."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobs.stage import parts
from jobs.stage.parts import Part
from pipeline import artifact
from pipeline.artifact import Building, Stage
from pipeline.storage import Storage

IDLE, TURNS = 6, 12


def slow(part: Part) -> Iterator[dict[str, Any]]:
    """Longer than a worker may be silent, and never silent so long."""
    for turn in range(TURNS):
        time.sleep(IDLE / 5)
        yield {"done": turn}
    yield {"commit": {"turns": TURNS}}


def test_a_part_may_take_longer_than_a_worker_may_be_silent(tmp_path: Path, spark: Any) -> None:
    building = artifact.open_stage(Storage(tmp_path), "test", Stage("slow", 1, ()), {}, 1, [])
    assert isinstance(building, Building)
    name = "spark.sql.execution.pyspark.udf.idleTimeoutSeconds"
    before = spark.conf.get(name)
    spark.conf.set(name, str(IDLE))
    try:
        records = parts.run_parts(spark, building, [Part("00000")], slow)
    finally:
        spark.conf.set(name, before)
    assert records["00000"]["turns"] == TURNS
