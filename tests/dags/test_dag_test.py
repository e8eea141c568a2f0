"""Each DAG, run by `dag.test()` in one process without a scheduler: the whole, then its two halves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.stage.session import SHARED_CLASSES, SMALL_JVM
from pipeline import artifact
from pipeline.storage import Storage
from tests.local.runs import LONGEST, SMALL

REPOSITORY = Path(__file__).parents[2]
CODE = """
import json, sys
from dags import corpus, crawl_to_chat, model
form = json.loads(sys.argv[1])
for module in (crawl_to_chat, corpus, model):
    taken = {key: value for key, value in form.items() if key in module.dag.params}
    run = module.dag.test(run_conf=taken)
    print("RAN", json.dumps([module.dag.dag_id, run.run_id, str(run.state.value), len(taken)]), flush=True)
"""


@pytest.mark.slow
def test_each_dag_runs_to_its_end(tmp_path):
    env = os.environ | {
        "AIRFLOW_HOME": str(tmp_path / "airflow"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(REPOSITORY / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW_CONN_SPARK_DEFAULT": json.dumps({"conn_type": "spark", "host": "local[*]"}),
        "CRAWL2CHAT_HOME": str(REPOSITORY),
        "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_DRIVER_PYTHON": sys.executable,
        "SPARK_SUBMIT_OPTS": f"{SMALL_JVM} {SHARED_CLASSES}",
        "TORCH_EXTENSIONS_DIR": str(REPOSITORY / ".crawl2chat/torch_extensions"),
    }
    subprocess.run(["airflow", "db", "migrate"], env=env, check=True, capture_output=True)
    form = SMALL | {"root": str(tmp_path / "data"), "max_warcs": SMALL["input.max_warcs"], "approval.canary_warcs": 1}
    command = [sys.executable, "-c", CODE, json.dumps(form)]
    done = subprocess.run(
        command, env=env, cwd=REPOSITORY, capture_output=True, text=True, timeout=LONGEST, check=False
    )
    lines = [json.loads(line[4:]) for line in done.stdout.splitlines() if line.startswith("RAN ")]
    assert [(dag, state) for dag, _, state, _ in lines] == [
        ("crawl_to_chat", "success"),
        ("corpus", "success"),
        ("model", "success"),
    ], done.stdout[-3000:] + done.stderr[-3000:]
    storage = Storage(tmp_path / "data")
    whole, *halves = (artifact.run_name(run) for _, run, _, _ in lines)
    for run, stage in zip(halves, ("shard", "evaluation-rl"), strict=True):
        assert artifact.pointer(storage, run, stage).state == "reused"
        assert artifact.of_run(storage, run, stage).folder == artifact.of_run(storage, whole, stage).folder
