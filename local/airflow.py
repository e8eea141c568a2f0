"""Airflow standalone for this project: its settings, its start, and its end.

Everything that it starts belongs to one kernel session, which `local.processes` stops as a whole.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx

from local import checks
from local.client import DAG, Airflow
from local.processes import members, started
from pipeline.errors import MachineError

START_SECONDS = 240.0  # a first start on two slow cores takes a minute
POOLS = {"CRAWL2CHAT_EXTRACT_POOL": "crawl2chat_extract", "CRAWL2CHAT_TRAINING_POOL": "crawl2chat_training"}
_LOG_LINES = 30
_REMEDY = "see the log; to begin Airflow afresh remove .crawl2chat/airflow, which holds no artifact"


@dataclass(frozen=True)
class Installation:
    """One Airflow: `home` is the project folder, `root` holds the artifacts, `port` serves Airflow's interface.

    `folder`: where Airflow keeps its state, if not in the project.
    """

    home: Path
    root: str
    port: int
    folder: Path | None = None

    @property
    def state(self) -> Path:
        """Airflow's AIRFLOW_HOME: its database and logs."""
        return self.folder or self.home / ".crawl2chat" / "airflow"

    @property
    def log(self) -> Path:
        """The output of `airflow standalone`."""
        return self.state / "standalone.log"

    @property
    def session_file(self) -> Path:
        """Holds the id of the kernel session while Airflow runs."""
        return self.state / "session"

    @property
    def url(self) -> str:
        """Address of Airflow's interface."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def web_port(self) -> int:
        """Port of the pages of the runs."""
        return self.port + 10

    @property
    def web_url(self) -> str:
        """Address of the pages of the runs."""
        return f"http://127.0.0.1:{self.web_port}"

    def environment(self) -> dict[str, str]:
        """The whole environment of Airflow and of its tasks.

        Settings of another Airflow are removed from the caller's environment; connections (`AIRFLOW_CONN_…`) stay.
        """
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW__", "AIRFLOW_HOME"))}
        kept.pop("PYTHONDONTWRITEBYTECODE", None)  # with it every process would compile the DAGs and our modules again
        programs = str(Path(sys.executable).parent)
        # A user who sets the driver's memory runs a long job, for which Java's own defaults are better.
        java = {} if "SPARK_DRIVER_MEMORY" in os.environ else {"SPARK_SUBMIT_OPTS": _small_jvm(self.home)}
        connections = {
            "AIRFLOW_CONN_SPARK_DEFAULT": json.dumps({"conn_type": "spark", "host": "local[*]"}),
            "AIRFLOW_CONN_DEEPSPEED_DEFAULT": json.dumps({"conn_type": "deepspeed", "extra": {"ranks": ranks()}}),
        }
        return {
            **java,
            **connections,
            **kept,
            "PATH": f"{programs}{os.pathsep}{kept.get('PATH', os.defpath)}",
            "PYSPARK_PYTHON": sys.executable,
            "PYSPARK_DRIVER_PYTHON": sys.executable,
            "SPARK_LOCAL_IP": "127.0.0.1",
            # Else spark-submit looks for it by a script that breaks below a path with a space.
            "SPARK_HOME": str(Path(spec.origin).parent) if (spec := find_spec("pyspark")) and spec.origin else "",
            "TORCH_EXTENSIONS_DIR": str(self.home / ".crawl2chat" / "torch_extensions"),
            "CRAWL2CHAT_HOME": str(self.home),
            "CRAWL2CHAT_ROOT": self.root,
            **POOLS,
            "CRAWL2CHAT_WEB_URL": self.web_url,
            "DO_NOT_TRACK": "1",
            "SCARF_ANALYTICS": "false",
            "AIRFLOW_HOME": str(self.state),
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.home / "dags"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "AIRFLOW__CORE__PARALLELISM": "4",  # the default of 32 workers takes 1.2 GB
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",  # the default is port 8080
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",  # all users of this machine; see API__HOST
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(self.port),
            "AIRFLOW__API__BASE_URL": self.url,
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
            # Parsing a file takes 3 CPU seconds: every half minute, the default, that is a third of a core.
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "600",
            # On a busy machine parsing a file takes a minute. With the defaults it then times out, and its DAG is
            # disabled until the next parse, in the middle of a run.
            "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "120",
            "AIRFLOW__DAG_PROCESSOR__DAG_FILE_PROCESSOR_TIMEOUT": "180",
            "AIRFLOW__DAG_PROCESSOR__STALE_DAG_THRESHOLD": "1800",
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "60",  # then a killed task is retried
        }


def _small_jvm(home: Path) -> str:
    """Java's options for short sessions, the same as in `jobs.stage.session`; a missing class archive is ignored."""
    options, archive = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC", f"{home}/.crawl2chat/spark.jsa"
    # spark-class splits options at spaces, whatever is quoted: below such a path sessions start without the archive.
    return options if " " in archive else f'{options} "-XX:SharedArchiveFile={archive}" -Xlog:cds*=off'


def prebuilding(home: Path) -> AbstractContextManager[Any]:
    """Build DeepSpeed's op while Airflow starts and the corpus is made; training waits for the rest of it."""
    if ranks() == 1:
        return nullcontext()
    command = ["nice", "-n", "10", sys.executable, "-m", "training.launch.prebuild"]
    return started(command, home, home / ".crawl2chat/prebuild-op.log")


def ranks() -> int:
    """Processes of a training stage: one per GPU; without a GPU two, or one on a single core."""
    try:
        gpus = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout.count("GPU ")
    except OSError:
        gpus = 0
    return gpus or min(2, len(os.sched_getaffinity(0)))


def check_alone(installation: Installation) -> None:
    """Raise `MachineError` if an Airflow of this project is already running: two would share a database."""
    if installation.session_file.exists():
        session = int(installation.session_file.read_text() or 0)
        if session and members(session):
            raise MachineError(
                f"an Airflow of this project is already running (session {session})",
                f"use it, or stop it: Ctrl-C in its terminal, or pkill -TERM -s {session}",
            )


@contextmanager
def standalone(
    installation: Installation, log: Callable[[str], None], dags: Sequence[str] = (DAG,)
) -> Iterator[Airflow]:
    """Start Airflow, wait until these DAGs can be triggered, and stop all its processes when the block ends."""
    check_alone(installation)
    checks.port(installation.port)
    began, environment = time.time(), installation.environment()
    program = Path(environment["PATH"].split(os.pathsep)[0]) / "airflow"
    try:
        with started([program, "standalone"], installation.home, installation.log, environment) as process:
            installation.session_file.write_text(str(process.pid))
            client = Airflow(installation.url)
            _wait_until_ready(process, client, installation, began, dags)
            for pool in POOLS.values():
                client.pool(pool, 1)  # one application or launch at a time: each uses all cores
            log(f"Airflow is ready after {time.time() - began:.0f} s: {installation.url}")
            yield client
    finally:
        installation.session_file.unlink(missing_ok=True)


def _wait_until_ready(
    process: subprocess.Popen[bytes], client: Airflow, installation: Installation, began: float, dags: Sequence[str]
) -> None:
    """Wait for the scheduler, and until the DAGs were parsed since `began`: the database may hold older versions."""
    while process.poll() is None:
        if time.time() - began > START_SECONDS:
            raise MachineError(f"Airflow is not ready after {START_SECONDS:.0f} s{_tail(installation)}", _REMEDY)
        try:
            if all(client.ready(dag, began) for dag in dags):
                return
            client.check_imports(began)
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise MachineError(f"Airflow ended while it was starting{_tail(installation)}", _REMEDY)


def _tail(installation: Installation) -> str:
    lines = installation.log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
    return "\n".join([f", the end of {installation.log}:", *lines])
