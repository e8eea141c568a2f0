"""Token shards go in, a chat model comes out: of a corpus that arrived, or of one that the form names.

Every corpus that arrives starts a run; one that the recipe (`CRAWL2CHAT_RECIPE`) does not name ends it at once, so
runs do not wait for each other; their stages wait for the slots of one pool.
"""

from __future__ import annotations

from airflow.sdk import DAG, Param, PartitionedAssetTimetable

from dags.parts import form, tasks
from dags.parts.retries import DEFAULTS

CORPUS_RUN = Param(
    None,
    type=["string", "null"],
    description="The run whose corpus is learned from; empty: the newest. A corpus that arrives is taken itself.",
)

with DAG(
    "model",
    doc_md=__doc__,
    schedule=PartitionedAssetTimetable(assets=tasks.CORPUS),
    params={"corpus_run": CORPUS_RUN} | form.params(tasks.ROOT, tasks.RECIPE, tasks.MODEL_SECTIONS),
    default_args=DEFAULTS,
    tags=["crawl2chat"],
) as dag:
    where = tasks.resolve_model()  # type: ignore[call-arg]
    where >> tasks.model_stages() >> tasks.report() >> tasks.announce_model(where)  # type: ignore[call-arg]
