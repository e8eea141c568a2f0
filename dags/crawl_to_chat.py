"""A crawl goes in, a chat model comes out: the whole road of a recipe, one task a stage.

What was made before with the same settings is found and not made again, so clearing a task, retrying it or running the
whole DAG a second time costs seconds.
"""

from __future__ import annotations

from airflow.sdk import DAG

from dags import form, road
from dags.retries import DEFAULTS

with DAG(
    "crawl_to_chat",
    doc_md=__doc__,
    schedule=None,
    max_active_runs=1,
    params=form.params(road.ROOT, road.RECIPE),
    default_args=DEFAULTS,
    tags=["crawl2chat"],
) as dag:
    road.resolve() >> road.corpus_stages() >> road.model_stages() >> road.report()  # type: ignore[call-arg]
