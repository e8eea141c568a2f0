"""What every Spark entry point shares: its command line and its session."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from dataclasses import dataclass

from pyspark.sql import SparkSession

from pipeline import artifact
from pipeline.artifact import Published
from pipeline.errors import MachineError
from pipeline.recipe import Recipe, load
from pipeline.storage import Storage

# Spark waits for ever for a Python worker that hangs, unless told otherwise.
IDLE_SECONDS = 120
SETTINGS = {
    "spark.sql.execution.pyspark.udf.idleTimeoutSeconds": str(IDLE_SECONDS),
    "spark.sql.execution.pyspark.udf.killOnIdleTimeout": "true",
    "spark.sql.execution.pyspark.udf.faulthandler.enabled": "true",
    "spark.python.worker.faulthandler.enabled": "true",
    "spark.sql.adaptive.coalescePartitions.parallelismFirst": "false",
    "spark.sql.execution.arrow.pyspark.enabled": "true",
    "spark.sql.session.timeZone": "UTC",
    "spark.ui.showConsoleProgress": "false",
}


@dataclass(frozen=True)
class Job:
    """What the command line of a stage says."""

    recipe: Recipe
    storage: Storage
    run: str
    input: list[str]
    force: bool


def job(description: str | None) -> Job:
    """Read the command line that all Spark stages share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", required=True, help="recipe file")
    parser.add_argument("--root", required=True, help="folder or s3:// URI below which artifacts lie")
    parser.add_argument("--run", help="name of the run; by default the recipe's name")
    parser.add_argument(
        "--input", nargs="+", default=[], help="for extract: WARC files, globs, URLs or lists instead of the recipe's"
    )
    parser.add_argument("--force", action="store_true", help="make again what is published already")
    options = parser.parse_args()
    overrides = {"input.warcs": options.input, "input.crawl": None} if options.input else None
    recipe = load(options.recipe, overrides)
    return Job(
        recipe, Storage(options.root), artifact.run_name(options.run or recipe.name), options.input, options.force
    )


def upstream(job: Job, stage: str) -> Published:
    """What an earlier stage of this run published, built with this recipe."""
    return artifact.of_run(job.storage, job.run, stage, job.recipe.section(stage))


def part_name(file: str) -> str:
    """`00003` of `…/part-00003.parquet`."""
    return file.rsplit("-", 1)[1].removesuffix(".parquet")


def spark(name: str) -> SparkSession:
    """The session of a stage. The master is the submitter's, or all cores of this machine.

    Raises `MachineError` where there is no Java.
    """
    if not (shutil.which("java") or os.environ.get("JAVA_HOME")):
        raise MachineError("Java is not installed", "install it: apt-get install openjdk-17-jre-headless")
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.appName(f"crawl2chat {name}")
    if "PYSPARK_GATEWAY_PORT" not in os.environ:  # spark-submit sets it; then the master is its business
        builder = builder.master("local[*]")
    for key, value in SETTINGS.items():
        builder = builder.config(key, value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("WARN")
    if "spark.sql.shuffle.partitions" not in dict(session.sparkContext.getConf().getAll()):
        # Spark's own 200 are meant for a cluster; more partitions than cores need is only overhead here.
        session.conf.set("spark.sql.shuffle.partitions", str(2 * session.sparkContext.defaultParallelism))
    return session
