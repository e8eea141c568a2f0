"""DAG `crawl_to_chat`: from WARC files to a chat model and a report."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Param, TaskGroup, task
from airflow.sdk.exceptions import AirflowFailException

from dags import form
from dags.stages import HOME, ModuleStage, SparkStage
from pipeline import recipe as recipes
from pipeline.artifact import run_name
from pipeline.errors import CrawlToChatError
from pipeline.storage import Storage

ROOT = os.environ.get("CRAWL2CHAT_ROOT", str(HOME / ".crawl2chat" / "data"))

with DAG(
    "crawl_to_chat",
    description="From WARC files to a chat model, with a report",
    schedule=None,
    catchup=False,
    max_active_runs=1,
    tags=["crawl2chat"],
    doc_md=__doc__,
    params={
        "recipe": Param("recipes/demo.yaml", type="string", description_md="Recipe file: what is built."),
        "root": Param(ROOT, type="string", description_md="Folder or `s3://` URI of the artifacts."),
        "warcs": Param(None, type=["null", "array"], description_md="WARC files, globs, URLs or lists, one a line."),
        "crawl": Param(None, type=["null", "string"], description_md="A Common Crawl id, `CC-MAIN-2025-05`."),
        "max_warcs": Param(None, type=["null", "integer"], minimum=1, description_md="First so many files only."),
        "force": Param(False, type="boolean", description_md="Make again what is made already."),
        **form.overrides(),
    },
) as dag:

    @task(task_id="resolve", retries=0)
    def resolve(params: dict[str, Any], run_id: str) -> dict[str, Any]:
        """The final recipe of this run, from file and form; all later tasks read it."""
        name = run_name(run_id)
        os.chdir(HOME)  # relative paths of a recipe are relative to the project
        try:
            storage = Storage(params["root"])
            storage.check_writable()
            final = recipes.load(Path(params["recipe"]), form.chosen(params))
        except CrawlToChatError as error:
            raise AirflowFailException(str(error)) from error
        path = f"runs/{name}/recipe.yaml"
        storage.write(path, final.to_yaml().encode())
        return {"recipe": storage.path(path), "root": storage.root, "run": name, "force": params["force"]}

    with TaskGroup("corpus", prefix_group_id=False) as corpus:
        stages = [
            SparkStage(task_id=stage, stage=stage, application=f"jobs/{script}.py")
            for stage, script in (
                ("extract", "extract"),
                ("filter", "filter"),
                ("deduplicate", "deduplicate"),
                ("redact", "redact"),
                ("tokenizer", "train_tokenizer"),
                ("shard", "shard"),
            )
        ]
        for before, after in zip(stages, stages[1:], strict=False):
            before >> after

    with TaskGroup("model", prefix_group_id=False) as model:
        last = None
        for stage in ("pretrain", "sft", "rl"):
            train = ModuleStage(task_id=stage, stage=stage, script=f"training/{stage}.py")
            evaluate = ModuleStage(
                task_id=f"evaluate_{stage}",
                stage=f"evaluation-{stage}",
                script="training/evaluation.py",
                ranks=1,
                options=["--of", stage],
            )
            if last is not None:
                last >> train
            train >> evaluate
            last = evaluate

    report = ModuleStage(task_id="report", stage="report", script="web/report.py", ranks=1)

    resolve() >> corpus >> model >> report  # type: ignore[call-arg]
