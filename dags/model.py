"""Token shards go in, a chat model comes out: those of a new corpus, or of a run that the form names.

Every new corpus starts a run, which ends at once if the recipe (`CRAWL2CHAT_RECIPE`) names another corpus. Runs do not
wait for each other; their stages share the slots of one pool.
"""

from __future__ import annotations

from airflow.sdk import DAG, Param, PartitionedAssetTimetable

from dags.parts import form, tasks
from dags.parts.failures import OF_RUN

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
    default_args=OF_RUN,
    tags=["crawl2chat"],
) as dag:
    where, stages, report = tasks.resolve_model(), tasks.model_stages(), tasks.report()  # type: ignore[call-arg]
    announce = tasks.announce_model(where)  # type: ignore[call-arg]
    # The report also of what failed; the run succeeds only if both did, since its last task decides.
    where >> stages >> report >> announce
    stages >> announce
