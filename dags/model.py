"""Token shards go in, a chat model comes out: of a corpus that arrived, or of one that the form names.

Every corpus that arrives starts a run; one that the recipe (`CRAWL2CHAT_RECIPE`) does not name ends it at once, so
runs do not wait for each other; their stages wait for the slots of one pool.
"""

from __future__ import annotations

from airflow.sdk import DAG, Param, PartitionedAssetTimetable

from dags import form, road
from dags.retries import DEFAULTS

CORPUS_RUN = Param(
    None,
    type=["string", "null"],
    description="The run whose corpus is learned from; empty: the newest. A corpus that arrives is taken itself.",
)

with DAG(
    "model",
    doc_md=__doc__,
    schedule=PartitionedAssetTimetable(assets=road.CORPUS),
    params={"corpus_run": CORPUS_RUN} | form.params(road.ROOT, road.RECIPE, road.MODEL_SECTIONS),
    default_args=DEFAULTS,
    tags=["crawl2chat"],
) as dag:
    where = road.resolve_model()  # type: ignore[call-arg]
    where >> road.model_stages() >> road.report() >> road.announce_model(where)  # type: ignore[call-arg]
