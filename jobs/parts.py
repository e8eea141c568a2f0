"""Parts of a stage as Spark tasks: each part is worked on in one Python worker and committed there.

A worker reads and writes files itself; only small rows cross the JVM. So a kill costs one part, and a rerun starts
with the parts that are not committed.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyspark.sql import SparkSession

from pipeline import errors
from pipeline.artifact import Building, commit
from pipeline.errors import CrawlToChatError
from pipeline.progress import Progress

# A part's work: yields {"done": n, …} at least every 10 seconds (a silent worker is killed), and last
# {"commit": record}, after its files are written.
Work = Callable[[str, dict[str, Any]], Iterator[dict[str, Any]]]

_SCHEMA = "part string, state string"
_ARROW = pa.schema([("part", pa.string()), ("state", pa.string())])
_POLL_SECONDS = 0.5


def run_parts(
    spark: SparkSession, building: Building, parts: Sequence[tuple[str, dict[str, Any]]], work: Work, step: str = ""
) -> dict[str, dict[str, Any]]:
    """Do the parts that are not yet committed, one a Spark task; returns all records by part name, sorted.

    `parts`: (name, payload as plain data). `step` separates the parts of one step of a stage from those of another.
    """
    prefix = f"{step}-" if step else ""
    done = building.commits()
    waiting = [(name, json.dumps(payload)) for name, payload in parts if prefix + name not in done]
    storage, folder = building.storage, building.work

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for row in batch.to_pylist():
                before = _cpu()
                failed = None
                try:
                    for state in work(row["part"], json.loads(row["state"])):
                        if "commit" in state:
                            record = state["commit"] | {"cpu_seconds": round(_cpu() - before, 3)}
                            commit(storage, folder, prefix + row["part"], record)
                        yield pa.RecordBatch.from_pylist([{"part": row["part"], "state": None}], _ARROW)
                except CrawlToChatError as error:  # said to the driver as it is, not as a trace of the JVM
                    failed = json.dumps([type(error).__name__, error.what, error.remedy])
                if failed:
                    yield pa.RecordBatch.from_pylist([{"part": row["part"], "state": failed}], _ARROW)

    progress = Progress(storage, building.progress_folder, building.content.stage, step or "part")
    if waiting:
        finished = threading.Event()

        def follow() -> None:
            while not finished.wait(_POLL_SECONDS):
                committed = building.commits()  # once a look: it reads every record
                progress(sum(prefix + name in committed for name, _ in parts), len(parts))

        follower = threading.Thread(target=follow, daemon=True)
        follower.start()
        try:
            # One partition a part: the smallest unit that can be lost.
            rows = spark.sparkContext.parallelize(waiting, len(waiting))
            states = spark.createDataFrame(rows, _SCHEMA).mapInArrow(run, _SCHEMA)
            failures = states.where("state is not null").collect()
        finally:
            finished.set()
            follower.join()
        if failures:
            kind, what, remedy = json.loads(failures[0]["state"])
            raise getattr(errors, kind)(what, remedy)
    progress(len(parts), len(parts))
    done = building.commits()
    return {name: done[prefix + name] for name, _ in sorted(parts)}


def cpu_seconds(records: dict[str, dict[str, Any]], spark: SparkSession | None) -> float:
    """CPU seconds of the parts, and of the JVM behind the session where /proc tells them."""
    seconds = sum(float(record["cpu_seconds"]) for record in records.values())
    if spark is not None:
        # Under spark-submit the JVM started us; else the session started it.
        started = getattr(spark.sparkContext._gateway, "proc", None)
        stat = Path(f"/proc/{started.pid if started else os.getppid()}/stat")
        if stat.exists():
            fields = stat.read_text().rpartition(")")[2].split()  # proc(5): utime and stime are fields 14 and 15
            seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


def _cpu() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
