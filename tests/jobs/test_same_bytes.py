"""How the work is spread decides no byte: one core or eight, input in another order, tasks that run twice at once."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyspark
import pytest

from jobs.stage.session import SHARED_CLASSES, SMALL_JVM
from pipeline import artifact
from pipeline.storage import Storage
from tests.jobs.conftest import REPOSITORY

pytestmark = pytest.mark.slow
SAMPLE = sorted((REPOSITORY / "tests/data/sample").glob("*.warc.gz"))
STAGES = ("extract", "filter", "deduplicate", "redact", "decontaminate", "tokenizer", "shard")
ROAD = """
import sys
from pathlib import Path
from jobs import decontaminate, deduplicate, extract, filter, redact, shard, train_tokenizer
from jobs.stage import session
from tests.jobs.conftest import job
root, *warcs = sys.argv[1:]
spark = session.spark("road")  # one for all stages: what they publish hangs on no session
stop, spark.stop, session.spark = spark.stop, lambda: None, lambda name: spark
for stage in (extract, filter, deduplicate, redact, decontaminate, train_tokenizer, shard):
    stage.run(job(Path(root), {"input.warcs": warcs}))
stop()
"""
# A task is started a second time as soon as it runs longer than the fastest, on another host than the first time.
SPECULATIVE = {
    "spark.speculation.efficiency.enabled": "false",
    "spark.speculation": "true",
    "spark.speculation.interval": "20ms",
    "spark.speculation.multiplier": "1.01",
    "spark.speculation.quantile": "0.1",
}


def road(folder: Path, master: str, warcs: list[Path], settings: dict[str, str]) -> dict[str, list[str]]:
    """Run the corpus road under spark-submit; the hashes of all published files, stage by stage."""
    folder.mkdir()
    (folder / "road.py").write_text(ROAD)
    (folder / "events").mkdir()
    logged = {"spark.eventLog.enabled": "true", "spark.eventLog.dir": f"{folder}/events"}
    options = [
        word
        for pair in (settings | logged | {"spark.eventLog.compress": "false"}).items()
        for word in ("--conf", "=".join(pair))
    ]
    submit = Path(sys.executable).with_name("spark-submit")
    done = subprocess.run(
        [submit, "--master", master, *options, folder / "road.py", folder / "root", *warcs],
        cwd=REPOSITORY,
        env=os.environ
        | {"PYTHONPATH": str(REPOSITORY), "PYSPARK_PYTHON": sys.executable}
        | {"SPARK_SUBMIT_OPTS": f"{SMALL_JVM} {SHARED_CLASSES}"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    made = [artifact.of_run(Storage(folder / "root"), "test", stage) for stage in STAGES]
    return {stage.content.stage: [file.sha256 for file in stage.content.files] for stage in made}


@pytest.fixture
def two_hosts(tmp_path: Path) -> Iterator[str]:
    """URL of a standalone master with two workers, that have two addresses of the loopback device."""
    started = []
    spark_class = Path(pyspark.__file__).parent / "bin/spark-class"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        master = f"spark://127.0.0.1:{probe.getsockname()[1]}"
    commands = [["master.Master", "--host", "127.0.0.1", "--port", master.rpartition(":")[2], "--webui-port", "0"]]
    for number in (2, 3):
        address = ["--host", f"127.0.0.{number}", "--webui-port", "0", "--cores", "2", "--memory", "2g"]
        commands.append(["worker.Worker", *address, "--work-dir", f"{tmp_path}/worker{number}", master])
    for name, *options in commands:
        log = (tmp_path / f"{name}-{len(started)}.txt").open("w")
        command = [spark_class, f"org.apache.spark.deploy.{name}", *options]
        started.append(subprocess.Popen(command, stdout=log, stderr=log))
    yield master
    for process in started:
        process.terminate()
        process.wait()


def test_cores_order_and_speculation_decide_no_byte(tmp_path: Path, two_hosts: str) -> None:
    one = road(tmp_path / "one", "local[1]", SAMPLE, {})
    assert all(one.values())
    assert road(tmp_path / "eight", "local[8]", SAMPLE[::-1], {"spark.sql.shuffle.partitions": "8"}) == one
    assert road(tmp_path / "twice", two_hosts, SAMPLE, SPECULATIVE) == one
    events = (file.read_text() for file in (tmp_path / "twice/events").rglob("events_*"))
    assert sum(text.count('"Speculative":true') for text in events) > 0
