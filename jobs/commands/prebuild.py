"""Make the archive of Spark's classes that sessions on this machine map: `python -m jobs.commands.prebuild`.

Most of a short session is its JVM loading and verifying 15,000 classes. HotSpot maps them instead where an earlier
session dumped them to an archive (JEP 350). An archive is valid for one version of Java and of Spark; without a valid
one, a session loads the classes itself.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from jobs.stage import session
from pipeline import errors
from pipeline.errors import MachineError


def _passed_on(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield from batches


def build() -> float:
    """Run what the stages run on a few rows, and dump the classes it loaded. Returns the seconds it took.

    Raises `MachineError` where Java writes no archive.
    """
    began, archive = time.monotonic(), session.CLASSES
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=archive.parent) as folder:
        dumped = Path(folder) / archive.name
        for name in ("SPARK_SUBMIT_OPTS", "SPARK_DRIVER_MEMORY"):  # a JVM that maps an archive writes none
            os.environ.pop(name, None)
        spark = session.spark("prebuild", f'"-XX:ArchiveClassesAtExit={dumped}" -Xlog:cds*=off')
        rows = spark.createDataFrame([(str(number), number) for number in range(100)], "name string, number long")
        rows = rows.repartition(2).mapInArrow(_passed_on, rows.schema)
        rows.write.parquet(f"{folder}/rows")
        read = spark.read.parquet(f"{folder}/rows")
        counted = read.groupBy("number").count().join(read, "number").where("count > 0").orderBy("name")
        counted.distinct().write.parquet(f"{folder}/counted")
        gateway = spark.sparkContext._gateway
        spark.stop()
        gateway.shutdown()
        gateway.proc.stdin.close()  # then the JVM ends
        gateway.proc.wait()
        if not dumped.is_file():
            remedy = "sessions start without it, more slowly; Java 17 writes it"
            raise MachineError(f"Java wrote no {dumped.name}", remedy)
        dumped.replace(archive)  # at once: a JVM that maps half an archive dies
    return time.monotonic() - began


def main() -> None:
    seconds = build()
    print(f"Spark's classes are ready in {session.CLASSES} ({seconds:.0f} s)", flush=True)


if __name__ == "__main__":
    errors.run(main)
