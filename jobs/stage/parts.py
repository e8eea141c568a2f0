"""Parts of a stage as Spark tasks: each part is worked on in one Python worker and committed there.

A worker reads and writes files itself; only small rows cross the JVM. So a kill costs one part, and a rerun starts
with the parts that are not committed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any, TypeVar

import pyarrow as pa
from pyspark.sql import SparkSession

from jobs.page import guard
from pipeline import errors
from pipeline.artifact import Building, commit
from pipeline.errors import CrawlToChatError
from pipeline.progress import Progress


@dataclass(frozen=True)
class Part:
    """What one task works on: its name, by which it is committed, and in a subclass the files it reads, as text."""

    name: str


P = TypeVar("P", bound=Part)
State = dict[str, Any]
# A part's work: yields {"done": n, …} at least every 10 seconds (a silent worker is killed), and last
# {"commit": record}, after its files are written.
Work = Callable[[P], Iterator[State]]

GIVEN, TOLD = "part string, state string", "part string, state string, filler binary"
_ARROW = pa.schema([("part", pa.string()), ("state", pa.string()), ("filler", pa.binary())])
_POLL_SECONDS = 0.5


def waiting(building: Building, parts: Sequence[P], step: str = "") -> list[P]:
    """The parts that are not yet committed."""
    prefix, done = f"{step}-" if step else "", set(building.committed())
    return [part for part in parts if prefix + part.name not in done]


def run_parts(
    spark: SparkSession | None,
    building: Building,
    parts: Sequence[P],
    work: Work[P],
    step: str = "",
    stream: str = "",
) -> dict[str, dict[str, Any]]:
    """Do the parts that are not yet committed, one per Spark task; returns all records by part name, sorted.

    `step` separates the parts of one step of a stage from those of another,
    `stream` the progress of one of several applications. `spark` may be None where nothing is `waiting`.
    """
    prefix = f"{step}-" if step else ""
    left = waiting(building, parts, step)
    storage, folder = building.storage, building.work
    kind = type(parts[0]) if parts else Part

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for row in batch.to_pylist():
                before = cpu()
                failed = None
                try:
                    for state in work(kind(**json.loads(row["state"]))):  # type: ignore[arg-type]
                        if "commit" in state:
                            record = state["commit"] | {"cpu_seconds": round(cpu() - before, 3)}
                            commit(storage, folder, prefix + row["part"], record)
                        yield _told(row["part"])
                except CrawlToChatError as error:  # said to the driver as it is, not as a trace of the JVM
                    failed = json.dumps([type(error).__name__, error.what, error.remedy])
                if failed:
                    yield _told(row["part"], failed)

    with followed(building, [part.name for part in parts], step, stream):
        if left:
            assert spark is not None
            # One partition a part: the smallest unit that can be lost.
            listed = [(part.name, json.dumps(dataclasses.asdict(part))) for part in left]
            rows = spark.sparkContext.parallelize(listed, len(listed))
            states = spark.createDataFrame(rows, GIVEN).mapInArrow(run, TOLD)
            failures = states.where("state is not null").select("state").collect()
            if failures:
                kind, what, remedy = json.loads(failures[0]["state"])
                raise getattr(errors, kind)(what, remedy)
    names = sorted(part.name for part in parts)
    done = building.commits({prefix + name for name in names})
    return {name: done[prefix + name] for name in names}


def _told(part: str, failed: str | None = None) -> pa.RecordBatch:
    """A row for the JVM that reaches it at once: a small one would lie in the worker's buffer for an hour, and the
    worker be killed for its silence."""
    filler = bytes(int(os.environ.get("SPARK_BUFFER_SIZE", 65536)))
    return pa.RecordBatch.from_pylist([{"part": part, "state": failed, "filler": filler}], _ARROW)


@contextmanager
def followed(building: Building, names: Sequence[str], step: str, stream: str = "") -> Iterator[None]:
    """Within the block the commits of these parts are told as progress; after it all are there."""
    prefix = f"{step}-" if step else ""
    progress = Progress(building.storage, building.progress_folder, building.content.stage, step or "part", stream)
    finished = threading.Event()

    def follow() -> None:
        pause = _POLL_SECONDS
        while not finished.wait(pause):
            began = monotonic()
            committed = set(building.committed())
            progress(sum(prefix + name in committed for name in names), len(names))
            pause = max(_POLL_SECONDS, 20 * (monotonic() - began))  # a bucket takes its time to list 90,000 names

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        yield
    finally:
        finished.set()
        follower.join()
    progress(len(names), len(names))


def cpu_seconds(records: dict[str, dict[str, Any]], spark: SparkSession | None) -> float:
    """CPU seconds of the parts, and of the JVM behind the session where /proc tells them."""
    seconds = sum(float(record["cpu_seconds"]) for record in records.values())
    if spark is not None:
        # Under spark-submit the JVM started us; else the session started it.
        started = getattr(spark.sparkContext._gateway, "proc", None)
        seconds += guard.cpu_seconds(started.pid if started else os.getppid())
    return seconds


def cpu() -> float:
    """CPU seconds of this process and its children so far."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
