"""A session on one machine is not open to others; and what it writes to the log of its stage."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

SCRIPT = """
import psutil
from jobs.stage import session
spark = session.spark("test")
jvm = psutil.Process().parent()
listening = {c.laddr.ip.removeprefix("::ffff:") for c in jvm.net_connections("tcp") if c.status == "LISTEN"}
print("LISTENS", sorted(listening), spark.sparkContext.uiWebUrl, flush=True)
spark.stop()
"""


def test_the_interface_of_an_own_session_is_on_loopback(spark: Any) -> None:
    assert urlsplit(spark.sparkContext.uiWebUrl).hostname in ("127.0.0.1", "localhost")


def test_so_is_all_of_one_that_spark_submit_started_by_hand(tmp_path: Path) -> None:
    """Its JVM runs before our code does, and listens on every address unless it is told otherwise."""
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {name: value for name, value in os.environ.items() if name != "SPARK_LOCAL_IP"}
    programs = str(Path(sys.executable).parent)
    done = subprocess.run(
        ["spark-submit", str(tmp_path / "script.py")],
        env={
            **environment,
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "PYSPARK_PYTHON": sys.executable,
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "LISTENS ['127.0.0.1'] None" in done.stdout, done.stdout + done.stderr[-3000:]
    assert "SPARK_LOCAL_IP=127.0.0.1 shows it" in done.stdout


def test_a_session_logs_no_info_from_its_start_on(spark: Any) -> None:
    """Set when it has started, forty lines of INFO would stand before those of the stage."""
    assert spark.sparkContext.getConf().get("spark.log.level") == "WARN"
    root = spark.sparkContext._jvm.org.apache.logging.log4j.LogManager.getRootLogger()
    assert root.getLevel().toString() == "WARN"
