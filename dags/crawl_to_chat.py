"""A crawl goes in, a chat model comes out: the whole road of a recipe, one task a stage.

What was made before with the same settings is found and not made again, so clearing a task, retrying it or running the
whole DAG a second time costs seconds.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, TaskGroup, chain, task
from airflow.sdk.exceptions import AirflowFailException

from dags import form
from dags.stages import HOME, ProcessStage, SparkStage, TrainingStage, place
from pipeline import artifact
from pipeline.errors import CrawlToChatError
from pipeline.recipe import load
from pipeline.storage import Storage

with DAG(
    "crawl_to_chat",
    doc_md=__doc__,
    schedule=None,
    max_active_runs=1,
    params=form.params(os.environ.get("CRAWL2CHAT_ROOT", ".crawl2chat/data")),
    default_args={"retries": 1, "retry_delay": timedelta(seconds=5)},
    tags=["crawl2chat"],
) as dag:

    @task
    def resolve(params: dict[str, Any], run_id: str) -> dict[str, str]:
        """Recipe file and form to one final recipe, `runs/<run>/recipe.yaml`; says where the run lies."""
        os.chdir(HOME)
        try:
            recipe = load(params["recipe"], form.overrides(dict(params)))
            storage = Storage(params["root"])
            run = artifact.run_name(run_id)
            name = f"runs/{run}/recipe.yaml"
            storage.write(name, recipe.to_yaml().encode())
        except CrawlToChatError as error:
            raise AirflowFailException(str(error)) from error
        print(f"recipe {recipe.name} for run {run}: {storage.path(name)}")
        return {"recipe": storage.path(name), "root": storage.root, "run": run}

    with TaskGroup("corpus", tooltip="Spark: from WARC files to token shards") as corpus:
        chain(
            SparkStage(task_id="extract", script="extract.py", stage="extract"),
            SparkStage(task_id="filter", script="filter.py", stage="filter"),
            SparkStage(task_id="deduplicate", script="deduplicate.py", stage="deduplicate"),
            SparkStage(task_id="redact", script="redact.py", stage="redact"),
            SparkStage(task_id="decontaminate", script="decontaminate.py", stage="decontaminate"),
            SparkStage(task_id="tokenizer", script="train_tokenizer.py", stage="tokenizer"),
            SparkStage(task_id="shard", script="shard.py", stage="shard"),
        )

    def evaluation(task_id: str, of: str) -> TrainingStage:
        """Measure what the stage `of` made."""
        return TrainingStage(
            task_id=task_id,
            script="evaluation.py",
            stage=f"evaluation-{of}",
            arguments=["--of", of],
            ranks=False,
        )

    with TaskGroup("model", tooltip="DeepSpeed: from token shards to a chat model") as model:
        chain(
            TrainingStage(task_id="pretrain", script="pretrain.py", stage="pretrain"),
            evaluation("evaluate_base", "pretrain"),
            TrainingStage(task_id="sft", script="sft.py", stage="sft"),
            evaluation("evaluate_sft", "sft"),
            TrainingStage(task_id="rl", script="rl.py", stage="rl"),
            evaluation("evaluate_rl", "rl"),
        )

    report = ProcessStage(task_id="report", stage="report", arguments=["-m", "web.report", *place("root", "run")])

    resolve() >> corpus >> model >> report  # type: ignore[call-arg]
