"""Under KubernetesExecutor a task asks for what it needs: those that wait are small, Spark's drivers are not."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from dags.crawl_to_chat import dag
from tests.local.runs import LONGEST

SIZES = {"small": {"requests": {"memory": "1Gi"}}, "training": {"requests": {"memory": "512Mi"}}}
REQUESTS = """
import json
import dags.backfill, dags.corpus, dags.crawl_to_chat, dags.model
def memory(task):
    pod = (getattr(task, "executor_config", None) or {}).get("pod_override")
    if pod is None:
        return None
    [container] = pod.spec.containers
    assert container.name == "base"
    return container.resources.requests["memory"]
files = (dags.backfill, dags.corpus, dags.crawl_to_chat, dags.model)
print(json.dumps({f.dag.dag_id: {task.task_id: memory(task) for task in f.dag.tasks} for f in files}))
"""


def test_each_task_asks_for_what_it_needs() -> None:
    result = subprocess.run(
        [sys.executable, "-c", REQUESTS],
        env={**os.environ, "CRAWL2CHAT_PODS": json.dumps(SIZES)},
        capture_output=True,
        text=True,
        check=True,
        timeout=LONGEST,
    )
    asked = json.loads(result.stdout.splitlines()[-1])
    for dag_id, tasks in asked.items():
        for task, memory in tasks.items():
            name = task.rpartition(".")[2]
            if dag_id == "backfill" or name in ("resolve", "approve", "report", "announce_corpus", "announce_model"):
                assert memory == "1Gi", (dag_id, task)
            elif task.startswith("model."):
                assert memory == "512Mi", (dag_id, task)
            else:
                assert memory is None, (dag_id, task)
    assert {"model.pretrain", "corpus.extract_batch", "report"} <= asked["crawl_to_chat"].keys()


def test_without_pods_nothing_is_asked_for() -> None:
    assert not any(task.executor_config for task in dag.tasks if not task.is_mapped)
