"""What tests of the DAGs' tasks pass in place of Airflow's own."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

AIRFLOW = "http://127.0.0.1:8080"


def task_of(dag: Any, task_id: str = "resolve", run: str = "r", where: Any = None) -> Any:
    """A task instance of `dag` that began now. `where`: what the task `resolve` returned."""
    return SimpleNamespace(
        task=SimpleNamespace(dag=dag),
        task_id=task_id,
        run_id=run,
        start_date=datetime.now(UTC),
        log_url=f"{AIRFLOW}/dags/{dag.dag_id}/runs/{run}/tasks/{task_id}?try_number=1",
        xcom_pull=lambda task_ids: where,
    )
