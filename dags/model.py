"""Token shards go in, a chat model comes out: those of a new corpus, or of a run that the form names.

Every new corpus starts a run, which ends at once if the recipe (`CRAWL2CHAT_RECIPE`) names another corpus. Runs do not
wait for each other; their stages share the slots of one pool.
"""

from __future__ import annotations

from airflow.sdk import DAG, Param, PartitionedAssetTimetable

from dags.parts import form, tasks
from dags.parts.retries import DEFAULTS

CORPUS_RUN = Param(
    None,
    type=["string", "null"],
    description="Run whose corpus to train on; empty: the newest. A run that a new corpus starts uses that one.",
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
