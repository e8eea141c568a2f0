"""Several crawls, each in a run of the DAG `corpus`: a few at a time, all with the same form.

A crawl whose artifacts exist with these settings costs seconds. To retry crawls that failed, clear their tasks.
"""

from __future__ import annotations

from typing import Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import DAG, Param, task

from dags.parts import form, pods, tasks
from dags.parts.retries import DEFAULTS
from pipeline.recipe import CRAWL_ID

CRAWLS = Param(
    type="array",
    items={"type": "string", "pattern": CRAWL_ID},
    minItems=1,
    uniqueItems=True,
    description="Common Crawl ids, one per line: CC-MAIN-2025-05.",
)


@task(executor_config=pods.SMALL)  # type: ignore[untyped-decorator]
def runs(params: dict[str, Any], run_id: str) -> list[dict[str, Any]]:
    """Run id and filled form of the run to trigger for each crawl."""
    filled = {key: value for key, value in params.items() if value is not None and key != "crawls"}
    return [{"trigger_run_id": f"{run_id}__{crawl}", "conf": filled | {"crawl": crawl}} for crawl in params["crawls"]]


with DAG(
    "backfill",
    doc_md=__doc__,
    schedule=None,
    params={"crawls": CRAWLS} | form.params(tasks.ROOT, tasks.RECIPE, tasks.CORPUS_SECTIONS, files=("max_warcs",)),
    default_args=DEFAULTS,
    tags=["crawl2chat"],
) as dag:
    TriggerDagRunOperator.partial(
        task_id="corpus",
        executor_config=pods.SMALL,
        retries=0,  # a crawl that failed or was rejected is not started again: its own tasks had their retries
        trigger_dag_id="corpus",
        logical_date=None,
        reset_dag_run=True,  # a cleared task runs its crawl again
        wait_for_completion=True,
        deferrable=True,
        poke_interval=10,
        map_index_template="{{ task.conf['crawl'] }}",
    ).expand_kwargs(runs())  # type: ignore[call-arg]
