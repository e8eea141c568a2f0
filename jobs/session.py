"""What every Spark entry point shares: its command line and its session."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pyspark.sql import SparkSession

from pipeline import artifact
from pipeline.artifact import Building, Published, Stage
from pipeline.errors import InputError, MachineError
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
    "spark.sql.execution.arrow.maxBytesPerBatch": "16m",
    "spark.sql.session.timeZone": "UTC",
    "spark.ui.showConsoleProgress": "false",
}

# On one machine a session is short: without the second compiler and a parallel collector, and with the classes that
# jobs.prebuild left, it costs a third of the CPU seconds (10 against 29). Without that file it starts all the same.
SMALL_JVM = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
CLASSES = Path(__file__).resolve().parents[1] / ".crawl2chat/spark.jsa"
SHARED_CLASSES = f'"-XX:SharedArchiveFile={CLASSES}" -Xlog:cds*=off'


@dataclass(frozen=True)
class Job:
    """What the command line of a stage says."""

    recipe: Recipe
    storage: Storage
    run: str
    input: list[str]  # folders of artifacts to read instead of the run's
    force: bool
    batch: tuple[int, int] | None = None  # (2, 20): the second of twenty, where a stage is done in batches


def _batch(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is no batch: write the second of twenty as 2/20")
    return int(number), int(count)


def job(description: str | None, warcs: bool = False, batches: bool = False) -> Job:
    """Read the command line that all Spark stages share. `--input` names WARCs for the stages that read `warcs`.

    For the others it names artifacts, by folder below the root. With `batches`, `--batch` asks for a part of the stage.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", required=True, help="recipe file")
    parser.add_argument("--root", required=True, help="folder or s3:// URI below which artifacts lie")
    parser.add_argument("--run", help="name of the run; by default the recipe's name")
    others = (
        "WARC files, globs, URLs or lists, not the recipe's" if warcs else "artifacts below the root, not the run's"
    )
    parser.add_argument("--input", nargs="+", default=[], help=others)
    parser.add_argument("--force", action="store_true", help="make again what is published already")
    if batches:
        parser.add_argument(
            "--batch", type=_batch, metavar="I/N", help="do the I-th of N parts of the input; publish nothing"
        )
    options = parser.parse_args()
    if batches and options.batch and options.force:
        parser.error("--force with --batch would remove what other batches have done: run jobs/canary.py --force first")
    overrides = {"input.warcs": options.input, "input.crawl": None} if warcs and options.input else None
    recipe = load(options.recipe, overrides)
    artifacts = [] if warcs else options.input
    run, batch = artifact.run_name(options.run or recipe.name), options.batch if batches else None
    return Job(recipe, Storage(options.root), run, artifacts, options.force, batch)


def upstream(job: Job, stage: str) -> Published:
    """The artifact of an earlier stage: the one `--input` names, or what this run built with this recipe."""
    given = [artifact.read(job.storage, folder) for folder in job.input]
    for found in given:
        if found.content.stage == stage:
            return found
    return artifact.of_run(job.storage, job.run, stage, job.recipe.section(stage))


def open_stage(
    job: Job, stage: Stage, sources: Sequence[Published], assets: dict[str, str] | None = None
) -> Published | Building:
    """Start a stage that reads artifacts, as `artifact.open_stage`. Refuses an `--input` that it does not read."""
    for folder in job.input:
        if folder not in {source.folder for source in sources}:
            reads = ", ".join(source.content.stage for source in sources)
            raise InputError(f"{stage.name} does not read {folder}", f"name artifacts of {reads}")
    inputs = [source.as_input() for source in sources]
    section, seed = job.recipe.section(stage.name), job.recipe.seed
    return artifact.open_stage(job.storage, job.run, stage, section, seed, inputs, assets=assets, force=job.force)


def part_name(file: str) -> str:
    """`00003` of `…/part-00003.parquet`."""
    return file.rsplit("-", 1)[1].removesuffix(".parquet")


def spark(name: str, classes: str = SHARED_CLASSES) -> SparkSession:
    """The session of a stage. The master is the submitter's, or all cores of this machine.

    `classes`: the options of Java that map an archive of classes here, or make one.
    Raises `MachineError` where there is no Java.
    """
    if not (shutil.which("java") or os.environ.get("JAVA_HOME")):
        raise MachineError("Java is not installed", "install it: apt-get install openjdk-17-jre-headless")
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.appName(f"crawl2chat {name}")
    if "PYSPARK_GATEWAY_PORT" not in os.environ:  # spark-submit sets it; then the master is its business
        builder = builder.master("local[*]")
        if "SPARK_DRIVER_MEMORY" not in os.environ:  # who gives it more has more to do
            builder = builder.config("spark.driver.extraJavaOptions", f"{SMALL_JVM} {classes}")
    for key, value in SETTINGS.items():
        builder = builder.config(key, value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("WARN")
    if "spark.sql.shuffle.partitions" not in dict(session.sparkContext.getConf().getAll()):
        # Spark's own 200 are meant for a cluster; more partitions than cores need is only overhead here.
        session.conf.set("spark.sql.shuffle.partitions", str(2 * session.sparkContext.defaultParallelism))
    return session
