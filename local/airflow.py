"""Airflow standalone of this project: its settings, its start, and an end that leaves no process behind.

Everything it starts lies in one session of the kernel, which is stopped as a whole: SIGTERM to `airflow standalone`
alone leaves its parts running.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from local import checks
from local.client import DAG, Airflow
from pipeline.errors import MachineError

START_SECONDS = 240.0  # a first start on two slow cores takes a minute
STOP_SECONDS = 15.0
POOLS = {"CRAWL2CHAT_EXTRACT_POOL": "crawl2chat_extract", "CRAWL2CHAT_TRAINING_POOL": "crawl2chat_training"}
_LOG_LINES = 30


@dataclass(frozen=True)
class Installation:
    """Where Airflow of this project lives: `home` is the project folder, `state` what Airflow writes.

    `folder`: for another state than the project's.
    """

    home: Path
    root: str
    port: int
    folder: Path | None = None

    @property
    def state(self) -> Path:
        """AIRFLOW_HOME."""
        return self.folder or self.home / ".crawl2chat" / "airflow"

    @property
    def log(self) -> Path:
        """What standalone prints."""
        return self.state / "standalone.log"

    @property
    def session_file(self) -> Path:
        """Holds the id of the running session."""
        return self.state / "session"

    @property
    def url(self) -> str:
        """Where people open it."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def web_port(self) -> int:
        """Of the pages of the runs."""
        return self.port + 10

    @property
    def web_url(self) -> str:
        """Where the pages of the runs are."""
        return f"http://127.0.0.1:{self.web_port}"

    def environment(self) -> dict[str, str]:
        """The whole environment of Airflow and of its tasks.

        Settings of another Airflow in the caller's environment are left out, connections (`AIRFLOW_CONN_…`) are kept.
        """
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW__", "AIRFLOW_HOME"))}
        kept.pop("PYTHONDONTWRITEBYTECODE", None)  # without it every process compiles the DAG and our modules anew
        programs = str(Path(sys.executable).parent)
        connections = {
            "SPARK_SUBMIT_OPTS": _small_jvm(self.home),
            "AIRFLOW_CONN_SPARK_DEFAULT": json.dumps({"conn_type": "spark", "host": "local[*]"}),
            "AIRFLOW_CONN_DEEPSPEED_DEFAULT": json.dumps({"conn_type": "deepspeed", "extra": {"ranks": ranks()}}),
        }
        return {
            **connections,
            **kept,
            "PATH": f"{programs}{os.pathsep}{kept.get('PATH', os.defpath)}",
            "PYSPARK_PYTHON": sys.executable,
            "PYSPARK_DRIVER_PYTHON": sys.executable,
            "SPARK_LOCAL_IP": "127.0.0.1",
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
            "AIRFLOW__CORE__PARALLELISM": "4",  # 32 workers otherwise, 1.2 GB
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",  # or tasks ask port 8080
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",  # of this machine's users; see API__HOST
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(self.port),
            "AIRFLOW__API__BASE_URL": self.url,
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
            # Each file costs 3 CPU seconds; every half minute that is a third of a core that a model could learn on.
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "600",
            # On a busy machine a file takes a minute. With the defaults it is then given up, and its DAG put out of
            # use until it is read again, in the middle of a run.
            "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "120",
            "AIRFLOW__DAG_PROCESSOR__DAG_FILE_PROCESSOR_TIMEOUT": "180",
            "AIRFLOW__DAG_PROCESSOR__STALE_DAG_THRESHOLD": "1800",
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "60",  # a killed task is started again after that
        }


def _small_jvm(home: Path) -> str:
    """Java's options for short sessions, as `jobs.stage.session` has them; without classes where none were prebuilt."""
    classes = f'"-XX:SharedArchiveFile={home}/.crawl2chat/spark.jsa" -Xlog:cds*=off'
    return f"-XX:TieredStopAtLevel=1 -XX:+UseSerialGC {classes}"


def ranks() -> int:
    """Processes of a training stage: one a GPU; two on a CPU of two cores or more."""
    try:
        gpus = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout.count("GPU ")
    except OSError:
        gpus = 0
    return gpus or min(2, len(os.sched_getaffinity(0)))


def members(session: int) -> list[int]:
    """Process ids of a session and of the sessions that its members began, zombies left out (Linux)."""
    found: set[int] = set()
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # pid (name) state ppid pgrp session …; the name may hold anything.
                state, parent, _, sid = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            except OSError:
                continue
            if state == "Z":
                continue
            parents[int(entry.name)] = int(parent)
            if int(sid) == session:
                found.add(int(entry.name))
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found)


def stop_session(session: int, seconds: float = STOP_SECONDS) -> None:
    """SIGTERM to all processes of the session, SIGKILL to those that are there after so many seconds."""
    _signal(session, signal.SIGTERM)
    until = time.monotonic() + seconds
    while members(session) and time.monotonic() < until:
        time.sleep(0.1)
    while left := members(session):  # one that is being killed may start another
        _signal(session, signal.SIGKILL)
        time.sleep(0.05 if left else 0)


def _signal(session: int, number: signal.Signals) -> None:
    for pid in members(session):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def check_alone(installation: Installation) -> None:
    """Raise `MachineError` where an Airflow of this project runs already: two would share a database."""
    if installation.session_file.exists():
        session = int(installation.session_file.read_text() or 0)
        if session and members(session):
            raise MachineError(
                f"an Airflow of this project runs already (session {session})",
                f"use it, or stop it: Ctrl-C in its terminal, or pkill -TERM -s {session}",
            )


@contextmanager
def standalone(
    installation: Installation, say: Callable[[str], None], dags: Sequence[str] = (DAG,)
) -> Iterator[Airflow]:
    """Airflow, ready to trigger these DAGs; stopped with all it started when the block ends, however it ends."""
    check_alone(installation)
    checks.port(installation.port)
    installation.state.mkdir(parents=True, exist_ok=True)
    began = time.time()
    with installation.log.open("wb") as log:
        process = subprocess.Popen(
            ["airflow", "standalone"],
            env=(environment := installation.environment()),
            cwd=installation.home,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            executable=str(Path(environment["PATH"].split(os.pathsep)[0]) / "airflow"),
        )
    try:
        installation.session_file.write_text(str(process.pid))
        client = Airflow(installation.url)
        _wait(process, client, installation, began, dags)
        for pool in POOLS.values():
            client.pool(pool, 1)  # one application, one launch at a time: it uses all cores
        say(f"Airflow is ready after {time.time() - began:.0f} s: {installation.url}")
        yield client
    finally:
        stop_session(process.pid)
        process.wait()
        installation.session_file.unlink(missing_ok=True)


def _wait(
    process: subprocess.Popen[bytes], client: Airflow, installation: Installation, began: float, dags: Sequence[str]
) -> None:
    """Until the scheduler is up and the DAGs were parsed by this start (the database may know older ones)."""
    while process.poll() is None:
        if time.time() - began > START_SECONDS:
            raise MachineError(f"Airflow is not ready after {START_SECONDS:.0f} s{_tail(installation)}", _LOOK)
        try:
            if all(client.ready(dag, began) for dag in dags):
                return
            client.check_imports()
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise MachineError(f"Airflow ended while it started{_tail(installation)}", _LOOK)


_LOOK = "see the log; `make clean` removes Airflow's state"


def _tail(installation: Installation) -> str:
    lines = installation.log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
    return "\n".join([f", the end of {installation.log}:", *lines])
