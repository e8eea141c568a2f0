"""Several crawls, each in a run of the DAG `corpus`: a few at a time, all with the same form.

A crawl whose artifacts exist with these settings is not made again. To retry crawls that failed, clear their tasks.
Airflow's own *Backfill*, a choice of its trigger dialog, is something else, and is not available for DAGs by hand.
"""

from __future__ import annotations

from typing import Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import DAG, Param, task

from dags.parts import documents, form, pods, tasks
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
    """Makes one filled form per crawl: the run of the DAG `corpus` that `corpus` will trigger, with its run id."""
    filled = {key: value for key, value in params.items() if value is not None and key != "crawls"}
    return [{"trigger_run_id": f"{run_id}__{crawl}", "conf": filled | {"crawl": crawl}} for crawl in params["crawls"]]


with DAG(
    "backfill",
    description="Several crawls, each in a run of the DAG corpus, a few at a time",
    doc_md=documents.of_dag(__doc__),
    schedule=None,
    params={"crawls": CRAWLS} | form.params(tasks.ROOT, tasks.RECIPE, tasks.CORPUS_SECTIONS, files=("max_warcs",)),
    default_args=DEFAULTS,
    tags=["crawl2chat"],
) as dag:
    TriggerDagRunOperator.partial(
        task_id="corpus",
        executor_config=pods.SMALL,
        doc_md="Triggers one run of the DAG `corpus` per crawl, and waits for it without a slot. A crawl that failed "
        "had its retries there: correct the cause, then *Clear* this task's instance of that crawl.",
        retries=0,  # a crawl that failed or was rejected is not started again: its own tasks had their retries
        trigger_dag_id="corpus",
        logical_date=None,
        reset_dag_run=True,  # a cleared task runs its crawl again
        wait_for_completion=True,
        deferrable=True,
        poke_interval=10,
        map_index_template="{{ task.conf['crawl'] }}",
    ).expand_kwargs(runs())  # type: ignore[call-arg]
