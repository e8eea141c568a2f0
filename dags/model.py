"""Token shards go in, a chat model comes out: those of a new corpus, or of a run that the form names.

Every new corpus starts a run, which ends at once if the recipe (`CRAWL2CHAT_RECIPE`) names another corpus. Runs do not
wait for each other; their stages share the slots of one pool.
"""

from __future__ import annotations

from airflow.sdk import DAG, Param, PartitionedAssetTimetable

from dags.parts import documents, form, tasks
from dags.parts.retries import DEFAULTS

CORPUS_RUN = Param(
    None,
    type=["string", "null"],
    description="Name of the run whose corpus to train on, as the list of runs shows it; empty: the newest corpus. A "
    "run that a new corpus starts uses that corpus.",
)

with DAG(
    "model",
    description="Token shards to a chat model: pretraining, fine-tuning, reinforcement learning",
    doc_md=documents.of_dag(__doc__),
    schedule=PartitionedAssetTimetable(assets=tasks.CORPUS),
    params={"corpus_run": CORPUS_RUN} | form.params(tasks.ROOT, tasks.RECIPE, tasks.MODEL_SECTIONS),
    default_args=DEFAULTS,
    tags=["crawl2chat"],
) as dag:
    where = tasks.resolve_model()  # type: ignore[call-arg]
    where >> tasks.model_stages() >> tasks.report() >> tasks.announce_model(where)  # type: ignore[call-arg]
