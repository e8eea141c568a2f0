"""A client of Airflow's REST API: the few calls that triggering and following a run need."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote

import httpx

from pipeline.errors import MachineError, RecipeError

DAG = "crawl_to_chat"
_PAGE = 100  # entries, Airflow's own limit
DAGS = (DAG, "corpus", "model", "backfill")


@dataclass(frozen=True)
class Task:
    """A task of a run. `state` is Airflow's, empty before it is scheduled; times are Unix seconds.

    `index`: number of a mapped task's instance, -1 for other tasks.
    """

    name: str
    index: int
    state: str
    tries: int
    started: float | None
    ended: float | None


class Airflow:
    """A client that fetches its own token.

    `login`: username and password; not needed by an Airflow that treats every user as admin.
    """

    def __init__(self, url: str, login: dict[str, str] | None = None) -> None:
        self._login = login
        self._http = httpx.Client(base_url=url, timeout=30.0, trust_env=False)
        self._token = ""

    def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One call; an expired token is renewed. Raises `MachineError` if Airflow refuses to give a token."""
        more_headers = options.pop("headers", {})
        for _ in range(2):
            self._token = self._token or self._fetch_token()
            headers = {"Authorization": f"Bearer {self._token}", **more_headers}
            response = self._http.request(method, f"/api/v2/{path}", headers=headers, **options)
            if response.status_code != 401:
                return response
            self._token = ""
        return response

    def _fetch_token(self) -> str:
        path = "/auth/token"
        response = self._http.post(path, json=self._login) if self._login else self._http.get(path)
        if response.is_error:
            raise MachineError(f"Airflow answers {response.status_code} to {path}", "check the name and the password")
        return str(response.json()["access_token"])

    def _json(self, path: str, **options: Any) -> Any:
        response = self.call("GET", path, **options)
        if response.is_error:
            message = f"Airflow answers {response.status_code} to {path}: {response.text[:500]}"
            raise MachineError(message, "see its log")
        return response.json()

    def _all(self, path: str, kind: str, **params: str) -> Iterator[Any]:
        """Every entry of a list: Airflow gives at most `maximum_page_limit` (100) of them at a time."""
        offset = 0
        while True:
            answer = self._json(path, params={"limit": _PAGE, "offset": offset, **params})
            yield from answer[kind]
            offset += len(answer[kind])
            if not answer[kind] or offset >= answer["total_entries"]:
                return

    def ready(self, dag: str, since: float) -> bool:
        """Whether the scheduler is healthy and `dag` was parsed after `since` (Unix seconds)."""
        try:
            health = self.call("GET", "monitor/health")
            details = self.call("GET", f"dags/{dag}")
        except MachineError:
            return False
        if health.is_error or details.is_error:
            return False
        parsed = details.json()["last_parsed_time"]
        return (
            health.json()["scheduler"]["status"] == "healthy"
            and parsed is not None
            and datetime.fromisoformat(parsed).timestamp() > since
        )

    def pool(self, name: str, slots: int) -> None:
        """Create a pool; one of this name that exists keeps its slots."""
        response = self.call("POST", "pools", json={"name": name, "slots": slots})
        if response.is_error and response.status_code != 409:  # 409: it exists
            message = f"Airflow answers {response.status_code} to pool {name}: {response.text[:500]}"
            raise MachineError(message, "see its log")

    def check_imports(self, since: float = 0.0) -> None:
        """Raise `MachineError` if a DAG file did not load after `since` (Unix seconds): older errors may be mended."""
        try:
            response = self.call("GET", "importErrors")
        except MachineError:  # no token yet, as in `ready`
            return
        answered = [] if response.is_error else response.json()["import_errors"]
        errors = [error for error in answered if datetime.fromisoformat(error["timestamp"]).timestamp() >= since]
        if errors:
            raise MachineError(
                f"{errors[0]['filename']} does not load:\n{errors[0]['stack_trace']}", "correct the file"
            )

    def fail_active(self, dag: str) -> None:
        """Fail all runs that a killed Airflow left unfinished: else they would continue before a new one."""
        for state in ("running", "queued"):
            for run in [*self._all(f"dags/{dag}/dagRuns", "dag_runs", order_by="id", state=state)]:
                self.fail(dag, run["dag_run_id"])

    def fail(self, dag: str, run: str) -> None:
        """Mark a run as failed, which stops its tasks."""
        self.call("PATCH", f"dags/{dag}/dagRuns/{quote(run)}", json={"state": "failed"})

    def trigger(self, dag: str, run: str, form: dict[str, Any]) -> None:
        """Start a run with a filled form. Raises `RecipeError` if Airflow refuses the form."""
        body = {"dag_run_id": run, "logical_date": None, "conf": form}
        response = self.call("POST", f"dags/{dag}/dagRuns", json=body)
        if response.is_error:
            refused = response.status_code < 500
            detail = response.json().get("detail", response.text) if refused else response.text[:500]
            raise RecipeError(f"Airflow refuses the form: {detail}", "correct the value")

    def state(self, dag: str, run: str) -> str:
        """State of a run: queued, running, success or failed."""
        return str(self._json(f"dags/{dag}/dagRuns/{quote(run)}")["state"])

    def tasks(self, dag: str, run: str) -> list[Task]:
        """All tasks of a run."""
        path = f"dags/{dag}/dagRuns/{quote(run)}/taskInstances"
        return [
            Task(
                instance["task_id"],
                instance["map_index"],
                instance["state"] or "",
                instance["try_number"],
                _seconds(instance["start_date"]),
                _seconds(instance["end_date"]),
            )
            for instance in self._all(path, "task_instances", order_by="id")
        ]

    def log(self, dag: str, run: str, task: Task) -> list[str]:
        """Lines of the log of a task's last try."""
        path = f"dags/{dag}/dagRuns/{quote(run)}/taskInstances/{task.name}/logs/{max(1, task.tries)}"
        content = self._json(
            path, params={"full_content": True, "map_index": task.index}, headers={"Accept": "application/json"}
        )["content"]
        lines: list[str] = []
        for part in content:
            if isinstance(part, str):
                lines += part.splitlines()
                continue
            lines += str(part.get("event", "")).splitlines()
            for error in (part.get("error_detail") or [])[:1]:  # those behind it repeat the lines above
                lines += f"{error.get('exc_type')}: {error.get('exc_value')}".splitlines()
        return lines


def _seconds(text: str | None) -> float | None:
    return datetime.fromisoformat(text).timestamp() if text else None
