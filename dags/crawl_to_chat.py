"""A crawl goes in, a chat model comes out: all stages of a recipe, one task per stage; announces `crawl2chat_model`.

Artifacts that exist with the same settings are reused: clearing a task, retrying it or running the whole DAG a second
time makes nothing again, and costs each stage a second or two.
"""

from __future__ import annotations

from airflow.sdk import DAG

from dags.parts import documents, form, tasks
from dags.parts.failures import OF_RUN

with DAG(
    "crawl_to_chat",
    description="WARC files to a chat model: every stage of a recipe, one task per stage",
    doc_md=documents.of_dag(__doc__),
    schedule=None,
    max_active_runs=1,
    params=form.params(tasks.ROOT, tasks.RECIPE),
    default_args=OF_RUN,
    tags=["crawl2chat"],
) as dag:
    where, corpus, model = tasks.resolve(), tasks.corpus_stages(), tasks.model_stages()  # type: ignore[call-arg]
    early, report = tasks.corpus_report(), tasks.report()
    announce = tasks.announce_model(where)  # type: ignore[call-arg]
    # The report also of what failed; the run succeeds only if both did, since its last task decides.
    where >> corpus >> [model, early] >> report >> announce
    model >> announce
