"""A crawl goes in, a chat model comes out: all stages of a recipe, one task per stage.

Artifacts that exist with the same settings are reused: clearing a task, retrying it or running the whole DAG a second
time makes nothing again, and costs each stage the seconds that Spark or PyTorch takes to start.
"""

from __future__ import annotations

from airflow.sdk import DAG

from dags.parts import documents, form, tasks
from dags.parts.retries import DEFAULTS

with DAG(
    "crawl_to_chat",
    description="WARC files to a chat model: every stage of a recipe, one task per stage",
    doc_md=documents.of_dag(__doc__),
    schedule=None,
    max_active_runs=1,
    params=form.params(tasks.ROOT, tasks.RECIPE),
    default_args=DEFAULTS,
    tags=["crawl2chat"],
) as dag:
    tasks.resolve() >> tasks.corpus_stages() >> tasks.model_stages() >> tasks.report()  # type: ignore[call-arg]
