"""Parts of a stage as Spark tasks: each part is processed in one Python worker and committed there.

A worker reads and writes files itself; only small rows cross the JVM. So a kill costs one part, and a rerun processes
only the parts that are not committed.
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
from jobs.stage import session
from pipeline import errors
from pipeline.artifact import Building, commit
from pipeline.errors import CrawlToChatError
from pipeline.progress import Progress


@dataclass(frozen=True)
class Part:
    """What one task processes: its name, by which it is committed, and in a subclass the files it reads.

    Fields are strings or numbers: a part travels to its worker as JSON.
    """

    name: str


P = TypeVar("P", bound=Part)
State = dict[str, Any]
ALIVE: State = {}  # a sign of life
# A part's work yields `ALIVE` again and again, since Spark kills a worker that is silent for `session.IDLE_SECONDS`,
# and at last {"commit": record}, after its files are written.
Work = Callable[[P], Iterator[State]]

_TO_WORKER, _TO_DRIVER = "part string, state string", "part string, state string, filler binary"
_ARROW = pa.schema([("part", pa.string()), ("state", pa.string()), ("filler", pa.binary())])
_POLL_SECONDS = 0.5
_NAMED = 20  # parts that an error names: a crawl has 90,000


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
    """Process the parts that are not yet committed, one per Spark task. Returns all records by part name, sorted.

    `step` separates the parts of one step of a stage from those of another, `stream` the progress of one of several
    applications. `spark` may be None where no part is `waiting`. Errors of ours in parts are raised here, as one.
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
                        yield _state(row["part"])
                except CrawlToChatError as error:  # sent to the driver as it is: the JVM would make it a stack trace
                    failed = json.dumps([type(error).__name__, error.what, error.remedy])
                if failed:
                    yield _state(row["part"], failed)

    with followed(building, [part.name for part in parts], step, stream):
        if left:
            assert spark is not None
            # One partition per part, so that a lost task costs one part.
            listed = [(part.name, json.dumps(dataclasses.asdict(part))) for part in left]
            rows = spark.sparkContext.parallelize(listed, len(listed))
            states = spark.createDataFrame(rows, _TO_WORKER).mapInArrow(run, _TO_DRIVER)
            failures = states.where("state is not null").select("part", "state").collect()
            if failures:
                raise failure({row["part"]: row["state"] for row in failures})
    names = sorted(part.name for part in parts)
    records = building.commits({prefix + name for name in names})
    return {name: records[prefix + name] for name in names}


def run_step(
    name: str, building: Building, parts: Sequence[P], work: Work[P], step: str = "", stream: str = ""
) -> tuple[dict[str, dict[str, Any]], float]:
    """As `run_parts`, in a session of its own, started only where a part is `waiting`; also returns CPU seconds."""
    spark = session.spark(name) if waiting(building, parts, step) else None
    records = run_parts(spark, building, parts, work, step, stream)
    seconds = cpu_seconds(records, spark)
    if spark is not None:
        spark.stop()
    return records, seconds


def failure(states: dict[str, str]) -> CrawlToChatError:
    """The error of the first part that failed, and the names of the others. `states`: as JSON, by part."""
    first, *others = sorted(states)
    kind, what, remedy = json.loads(states[first])
    if others:
        some = ", ".join(others[:_NAMED]) + (", …" if len(others) > _NAMED else "")
        what += f"\npart {first} is one of {len(states)} parts that failed; the others: {some}"
    error: CrawlToChatError = getattr(errors, kind)(what, remedy)
    return error


def _state(part: str, failed: str | None = None) -> pa.RecordBatch:
    """A row for the JVM, as large as the worker's output buffer, so that it is sent at once.

    Small rows would stay in the buffer for up to an hour, and the worker would be killed for its silence.
    """
    filler = bytes(int(os.environ.get("SPARK_BUFFER_SIZE", 65536)))
    return pa.RecordBatch.from_pylist([{"part": part, "state": failed, "filler": filler}], _ARROW)


@contextmanager
def followed(building: Building, names: Sequence[str], step: str, stream: str = "") -> Iterator[None]:
    """Write progress from the commits of these parts while the block runs, and that all are done when it ends."""
    prefix = f"{step}-" if step else ""
    progress = Progress(building.storage, building.progress_folder, building.content.stage, step or "part", stream)
    finished = threading.Event()

    def follow() -> None:
        pause = _POLL_SECONDS
        while not finished.wait(pause):
            began = monotonic()
            committed = set(building.committed())
            progress(sum(prefix + name in committed for name in names), len(names))
            # At most a twentieth of the time is spent on it: in a bucket, listing 90,000 names takes long.
            pause = max(_POLL_SECONDS, 20 * (monotonic() - began))

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        yield
    finally:
        finished.set()
        follower.join()
    progress(len(names), len(names))


def cpu_seconds(records: dict[str, dict[str, Any]], spark: SparkSession | None) -> float:
    """CPU seconds of the parts, and of the JVM behind the session where /proc has them."""
    seconds = sum(float(record["cpu_seconds"]) for record in records.values())
    if spark is not None:
        # Under spark-submit the JVM is our parent process; else the session started it.
        jvm = getattr(spark.sparkContext._gateway, "proc", None)
        seconds += guard.cpu_seconds(jvm.pid if jvm else os.getppid())
    return seconds


def cpu() -> float:
    """CPU seconds of this process and its children so far."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
