"""A crawl goes in, token shards come out: one run per crawl, which is the partition of the asset `crawl2chat_corpus`.

The DAG `model` waits for that asset. Several crawls may run at the same time; artifacts that exist are reused.
"""

from __future__ import annotations

from airflow.sdk import DAG, PartitionedAtRuntime

from dags.parts import documents, form, tasks
from dags.parts.retries import DEFAULTS

with DAG(
    "corpus",
    description="WARC files to token shards: one run per crawl, whose corpus starts the DAG model",
    doc_md=documents.of_dag(__doc__),
    schedule=PartitionedAtRuntime(),
    max_active_runs=4,
    params=form.params(tasks.ROOT, tasks.RECIPE, tasks.CORPUS_SECTIONS),
    default_args=DEFAULTS,
    tags=["crawl2chat"],
) as dag:
    where = tasks.resolve(sections=tasks.CORPUS_SECTIONS)  # type: ignore[call-arg]
    where >> tasks.corpus_stages() >> tasks.report() >> tasks.announce_corpus(where)  # type: ignore[call-arg]
