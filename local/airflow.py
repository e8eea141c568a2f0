"""Airflow on one machine: `airflow standalone` with SQLite, on loopback, in a session of its own that ends as a whole."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from pipeline.errors import MachineError

HOME = Path(__file__).resolve().parents[1]
STATE = HOME / ".crawl2chat"
_START_SECONDS = 180
_STOP_SECONDS = 20
_PARALLEL = 4  # worker processes; standalone starts 32 unless told otherwise, 1.2 GB of them


def environment(port: int, root: str) -> dict[str, str]:
    """The environment of Airflow and its tasks. Its own settings only; a user's Airflow elsewhere is not touched."""
    url = f"http://127.0.0.1:{port}"
    ours = {
        "AIRFLOW_HOME": str(STATE / "airflow"),
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": url,
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(HOME / "dags"),
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",  # or no task finds a server on another port
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__PARALLELISM": str(_PARALLEL),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",  # loopback only
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "30",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{STATE / 'airflow' / 'airflow.db'}",
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(STATE / "airflow" / "logs"),
        "AIRFLOW_CONN_SPARK_DEFAULT": json.dumps({"conn_type": "spark", "host": "local[*]"}),
        "CRAWL2CHAT_HOME": str(HOME),
        "CRAWL2CHAT_ROOT": root,
        "HF_HUB_OFFLINE": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYSPARK_PYTHON": sys.executable,
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    return inherited | ours


def check_machine(port: int) -> None:
    """Raise `MachineError` where Java is missing or the port is taken, before anything is started."""
    if shutil.which("java") is None and not os.environ.get("JAVA_HOME"):
        raise MachineError("Java is not installed, and Spark needs it", "apt-get install openjdk-17-jre-headless")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise MachineError(f"port {port} is taken", f"choose another: make run PORT={port + 1}") from error


class Standalone:
    """`with Standalone(port, root) as airflow:` starts it, waits until it answers, and stops all of it at the end."""

    def __init__(self, port: int, root: str) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.log = STATE / "airflow" / "standalone.log"
        self._environment = environment(port, root)
        self._process: subprocess.Popen[bytes] | None = None
        self._client = httpx.Client(base_url=self.url, timeout=30)

    def __enter__(self) -> Standalone:
        check_machine(self.port)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [str(Path(sys.executable).parent / "airflow"), "standalone"],
                cwd=HOME,
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _wait(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if self._process is not None and self._process.poll() is not None:
                break
            try:
                if self._client.get("/api/v2/monitor/health").is_success:
                    token = self._client.get("/auth/token").json()["access_token"]
                    self._client.headers["Authorization"] = f"Bearer {token}"
                    if self._client.get("/api/v2/dags/crawl_to_chat").is_success:
                        return
            except (httpx.TransportError, KeyError, ValueError):
                pass  # not up yet
            time.sleep(0.5)
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
        raise MachineError(f"Airflow did not start; the end of its log:\n{tail}", f"see {self.log}")

    def call(self, method: str, path: str, **kwargs: Any) -> Any:
        """A call of the REST API, below `/api/v2`; its JSON answer."""
        answer = self._client.request(method, f"/api/v2{path}", **kwargs)
        if answer.is_error:
            raise MachineError(f"Airflow answered {answer.status_code}: {answer.text[:500]}", f"see {self.log}")
        return answer.json()

    def stop(self) -> None:
        """End the whole session: a SIGTERM to standalone alone leaves orphans."""
        process, self._process = self._process, None
        if process is None:
            return
        for wanted in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + _STOP_SECONDS
            for pid in session_members(process.pid):
                try:
                    os.kill(pid, wanted)
                except ProcessLookupError:
                    pass
            while session_members(process.pid) and time.monotonic() < deadline:
                process.poll()  # reap it
                time.sleep(0.2)


def session_members(session: int) -> list[int]:
    """Live processes of a session and of the sessions its members began, from /proc."""
    parents: dict[int, int] = {}
    sessions: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if fields[0] != "Z":
                parents[int(entry.name)], sessions[int(entry.name)] = int(fields[1]), int(fields[3])
    members = {pid for pid, of in sessions.items() if of == session}
    grown = True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in members} - members
        members |= more
        grown = bool(more)
    return sorted(members)
