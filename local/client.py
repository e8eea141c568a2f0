"""The few calls of Airflow's REST API that following a run takes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote

import httpx

from pipeline.errors import MachineError, RecipeError

DAG = "crawl_to_chat"
DAGS = (DAG, "corpus", "model", "backfill")


@dataclass(frozen=True)
class Task:
    """A task of a run: `state` is Airflow's, empty where it was not yet looked at.

    `index`: of a mapped task, -1 for others.
    """

    name: str
    index: int
    state: str
    tries: int
    started: float | None
    ended: float | None


class Airflow:
    """A client that fetches its token by itself: of an Airflow whose users are all admins, or with a `login`.

    `login`: username and password.
    """

    def __init__(self, url: str, login: dict[str, str] | None = None) -> None:
        self._login = login
        self._http = httpx.Client(base_url=url, timeout=30.0, trust_env=False)
        self._token = ""

    def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One call; a token that ran out is fetched anew. Raises `MachineError` where Airflow gives none."""
        given = options.pop("headers", {})
        for _ in range(2):
            self._token = self._token or self._fetched()
            headers = {"Authorization": f"Bearer {self._token}", **given}
            answer = self._http.request(method, f"/api/v2/{path}", headers=headers, **options)
            if answer.status_code != 401:
                return answer
            self._token = ""
        return answer

    def _fetched(self) -> str:
        path = "/auth/token"
        answer = self._http.post(path, json=self._login) if self._login else self._http.get(path)
        if answer.is_error:
            raise MachineError(f"Airflow answers {answer.status_code} to {path}", "check the name and the password")
        return str(answer.json()["access_token"])

    def _json(self, path: str, **options: Any) -> Any:
        answer = self.call("GET", path, **options)
        if answer.is_error:
            raise MachineError(f"Airflow answers {answer.status_code} to {path}: {answer.text[:500]}", "see its log")
        return answer.json()

    def ready(self, dag: str, since: float) -> bool:
        """True once the scheduler beats and `dag` was parsed after `since` (Unix seconds)."""
        try:
            health = self.call("GET", "monitor/health")
            found = self.call("GET", f"dags/{dag}")
        except MachineError:
            return False
        if health.is_error or found.is_error:
            return False
        parsed = found.json()["last_parsed_time"]
        return (
            health.json()["scheduler"]["status"] == "healthy"
            and parsed is not None
            and datetime.fromisoformat(parsed).timestamp() > since
        )

    def pool(self, name: str, slots: int) -> None:
        """Make a pool, where there is none of this name."""
        answer = self.call("POST", "pools", json={"name": name, "slots": slots})
        if answer.is_error and answer.status_code != 409:
            raise MachineError(
                f"Airflow answers {answer.status_code} to pool {name}: {answer.text[:500]}", "see its log"
            )

    def check_imports(self) -> None:
        """Raise `MachineError` where a DAG file does not load."""
        answer = self.call("GET", "importErrors")
        errors = [] if answer.is_error else answer.json()["import_errors"]
        if errors:
            raise MachineError(
                f"{errors[0]['filename']} does not load:\n{errors[0]['stack_trace']}", "correct the file"
            )

    def fail_active(self, dag: str) -> None:
        """Give up runs that an Airflow that was killed left behind; else they would go first."""
        for state in ("running", "queued"):
            for run in self._json(f"dags/{dag}/dagRuns", params={"state": state})["dag_runs"]:
                self.fail(dag, run["dag_run_id"])

    def fail(self, dag: str, run: str) -> None:
        """Mark a run as failed; its tasks are stopped."""
        self.call("PATCH", f"dags/{dag}/dagRuns/{quote(run)}", json={"state": "failed"})

    def trigger(self, dag: str, run: str, form: dict[str, Any]) -> None:
        """Start a run with a filled form. Raises `RecipeError` where the form is refused."""
        answer = self.call("POST", f"dags/{dag}/dagRuns", json={"dag_run_id": run, "logical_date": None, "conf": form})
        if answer.is_error:
            detail = answer.json().get("detail", answer.text) if answer.status_code < 500 else answer.text[:500]
            raise RecipeError(f"Airflow refuses the form: {detail}", "correct the value")

    def state(self, dag: str, run: str) -> str:
        """State of a run: queued, running, success or failed."""
        return str(self._json(f"dags/{dag}/dagRuns/{quote(run)}")["state"])

    def tasks(self, dag: str, run: str) -> list[Task]:
        """All tasks of a run."""
        found = self._json(f"dags/{dag}/dagRuns/{quote(run)}/taskInstances", params={"limit": 100})
        return [
            Task(
                one["task_id"],
                one["map_index"],
                one["state"] or "",
                one["try_number"],
                _seconds(one["start_date"]),
                _seconds(one["end_date"]),
            )
            for one in found["task_instances"]
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
            for error in part.get("error_detail") or []:
                lines.append(f"{error.get('exc_type')}: {error.get('exc_value')}")
        return lines


def _seconds(text: str | None) -> float | None:
    return datetime.fromisoformat(text).timestamp() if text else None
