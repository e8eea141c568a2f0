"""The Spark session of a stage."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from pyspark import SparkConf, SparkContext
from pyspark.sql import SparkSession

from pipeline.errors import MachineError

IDLE_SECONDS = 120  # after which a silent Python worker is killed; by default Spark waits for ever
SETTINGS = {
    "spark.sql.execution.pyspark.udf.idleTimeoutSeconds": str(IDLE_SECONDS),
    "spark.sql.execution.pyspark.udf.killOnIdleTimeout": "true",
    # A worker that crashes in C code prints its Python stack.
    "spark.sql.execution.pyspark.udf.faulthandler.enabled": "true",
    "spark.python.worker.faulthandler.enabled": "true",
    # After a shuffle, partitions of the advised size: by default there are as many small ones as cores.
    "spark.sql.adaptive.coalescePartitions.parallelismFirst": "false",
    "spark.sql.execution.arrow.pyspark.enabled": "true",
    "spark.sql.execution.arrow.maxBytesPerBatch": "16m",  # bounds a worker's memory, whatever its rows hold
    "spark.sql.session.timeZone": "UTC",
    "spark.ui.showConsoleProgress": "false",
    # From the start of the session: set later, some forty lines of INFO stand before those of the stage.
    "spark.log.level": "WARN",
}

# On one machine a session is short. Without the second compiler and a parallel garbage collector, and with the archive
# of classes that jobs.commands.prebuild makes, it costs a third of the CPU seconds (10 against 29). It also starts
# without that file.
SMALL_JVM = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
LOOPBACK = "127.0.0.1"
CLASSES = Path(__file__).resolve().parents[2] / ".crawl2chat/spark.jsa"
SHARED_CLASSES = f'"-XX:SharedArchiveFile={CLASSES}" -Xlog:cds*=off'


def _submitted_master() -> str:
    """The master that spark-submit was given; without one it takes this machine's cores."""
    SparkContext._ensure_initialized()  # connects to the JVM, which holds the settings of spark-submit
    return str(SparkConf().get("spark.master", "local[*]"))


def spark(name: str, classes: str = SHARED_CLASSES) -> SparkSession:
    """The session of a stage, on the master of spark-submit, or else on all cores of this machine.

    `classes`: Java's options that map an archive of classes, or make one. Raises `MachineError` where there is no Java.
    """
    if not (shutil.which("java") or os.environ.get("JAVA_HOME")):
        raise MachineError("Java is not installed", "install it: apt-get install openjdk-17-jre-headless")
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.appName(f"crawl2chat {name}")
    submitted = "PYSPARK_GATEWAY_PORT" in os.environ  # set by spark-submit, which then also sets the master
    if "SPARK_LOCAL_IP" not in os.environ and (not submitted or _submitted_master().startswith("local")):
        # By default Spark listens on every address of the machine, and its interface has no login.
        for key in ("spark.driver.host", "spark.driver.bindAddress"):
            builder = builder.config(key, LOOPBACK)
        if submitted:  # too late: the interface takes its address from the environment in which the JVM was started
            builder = builder.config("spark.ui.enabled", "false")
            print(f"Spark's interface is off; SPARK_LOCAL_IP={LOOPBACK} shows it on {LOOPBACK}:4040", flush=True)
        else:
            os.environ["SPARK_LOCAL_IP"] = LOOPBACK
    if not submitted:
        builder = builder.master("local[*]")
        if "SPARK_DRIVER_MEMORY" not in os.environ:  # a user who sets it runs a long job: keep Java's defaults
            builder = builder.config("spark.driver.extraJavaOptions", f"{SMALL_JVM} {classes}")
    for key, value in SETTINGS.items():
        builder = builder.config(key, value)
    session = builder.getOrCreate()
    if "spark.sql.shuffle.partitions" not in dict(session.sparkContext.getConf().getAll()):
        # Spark's default of 200 is meant for a cluster; partitions beyond what the cores need are only overhead here.
        session.conf.set("spark.sql.shuffle.partitions", str(2 * session.sparkContext.defaultParallelism))
    return session
