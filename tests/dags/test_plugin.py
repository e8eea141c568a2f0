"""What we add to Airflow's interface: the tab of a DAG run, and the links of a task."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from types import SimpleNamespace

from airflow.api_fastapi.core_api.datamodels.plugins import ExternalViewResponse
from airflow.serialization.serialized_objects import DagSerialization

from dags.crawl_to_chat import dag
from dags.parts import links
from dags.parts.operators import ProcessStage, SparkStage
from dags.parts.plugin import Pages


def test_airflow_finds_the_tab():
    assert [point.load() for point in entry_points(group="airflow.plugins", name="crawl2chat")] == [Pages]
    (view,) = [ExternalViewResponse.model_validate(view) for view in Pages.external_views]
    assert (view.destination, view.href) == ("dag_run", "http://127.0.0.1:8090/runs/{RUN_ID}")


def test_every_stage_links_to_the_page_of_its_run():
    read = DagSerialization.from_dict(DagSerialization.to_dict(dag))
    for task in dag.tasks:
        if isinstance(task, (SparkStage, ProcessStage)):
            assert [link.name for link in read.get_task(task.task_id).operator_extra_links] == ["Live and report"]


def test_a_link_is_pushed_when_the_task_begins(monkeypatch):
    monkeypatch.setenv("CRAWL2CHAT_WEB_URL", "https://pages.example/")
    pushed = {}
    run = "manual__2026-01-01T00:00:00+00:00"
    task = SimpleNamespace(run_id=run, xcom_push=lambda key, value: pushed.update({key: value}))
    links.push(dag.get_task("corpus.filter"), {"ti": task})
    assert pushed == {"_link_Page": "https://pages.example/runs/manual__2026-01-01T00-00-00-00-00"}


def test_spark_and_tensorboard_are_linked_if_their_address_is_set():
    code = (
        "from dags.crawl_to_chat import dag\n"
        "for name in ('corpus.filter', 'model.sft', 'report'):\n"
        "    print(*(f'{x.name}={x.get_link(None, ti_key=None)}' for x in dag.get_task(name).operator_extra_links[1:]))"
    )
    addresses = {"CRAWL2CHAT_SPARK_UI_URL": "http://spark:18080", "CRAWL2CHAT_TENSORBOARD_URL": "http://board:6006"}
    command, env = [sys.executable, "-c", code], os.environ | addresses
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-3:] == ["Spark=http://spark:18080", "TensorBoard=http://board:6006", ""]
