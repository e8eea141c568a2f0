"""The Spark session of a stage."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from pyspark.sql import SparkSession

from pipeline.errors import MachineError

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
# jobs.commands.prebuild left, it costs a third of the CPU seconds (10 against 29). Without that file it starts as well.
SMALL_JVM = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
CLASSES = Path(__file__).resolve().parents[2] / ".crawl2chat/spark.jsa"
SHARED_CLASSES = f'"-XX:SharedArchiveFile={CLASSES}" -Xlog:cds*=off'


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
        if "SPARK_DRIVER_MEMORY" not in os.environ:  # a user who sets it runs a long job: keep Java's defaults
            builder = builder.config("spark.driver.extraJavaOptions", f"{SMALL_JVM} {classes}")
    for key, value in SETTINGS.items():
        builder = builder.config(key, value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("WARN")
    if "spark.sql.shuffle.partitions" not in dict(session.sparkContext.getConf().getAll()):
        # Spark's own 200 are meant for a cluster; more partitions than cores need is only overhead here.
        session.conf.set("spark.sql.shuffle.partitions", str(2 * session.sparkContext.defaultParallelism))
    return session
