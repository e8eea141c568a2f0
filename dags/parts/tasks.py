"""The tasks that the DAGs share: resolving a recipe, the stages of a corpus and of a model, what they announce."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from airflow.sdk import Asset, TaskGroup, TriggerRule, chain, task
from airflow.sdk.exceptions import AirflowSkipException

from dags.parts import form
from dags.parts.approval import AskForExtract, AskForPretraining
from dags.parts.links import web_url
from dags.parts.operators import HOME, Canary, ExtractBatch, ProcessStage, SparkStage, TrainingStage
from dags.parts.place import place
from pipeline import artifact, stages
from pipeline.recipe import Recipe, load
from pipeline.storage import Storage

ROOT = os.environ.get("CRAWL2CHAT_ROOT", ".crawl2chat/data")
RECIPE = os.environ.get("CRAWL2CHAT_RECIPE", "recipes/demo.yaml")  # of runs that nobody fills a form for
EXTRACT_POOL = os.environ.get("CRAWL2CHAT_EXTRACT_POOL", "default_pool")  # its slots: batches at a time
TRAINING_POOL = os.environ.get("CRAWL2CHAT_TRAINING_POOL", "default_pool")  # its slots: launches at a time
CORPUS, MODEL = Asset("crawl2chat_corpus"), Asset("crawl2chat_model")
CORPUS_STAGES = tuple(step.name for step in stages.CORPUS)
CORPUS_SECTIONS = ("seed", *stages.sections(stages.CORPUS), "approval")
MODEL_SECTIONS = ("seed", *stages.sections(stages.MODEL), "memorization", "approval")


def partition(recipe: Recipe) -> str:
    """The key of a corpus among all: the crawl that it is made of, or the name of a recipe of files."""
    return recipe.input.crawl or recipe.name


def settle(recipe: Recipe, storage: Storage, run_id: str) -> dict[str, str]:
    """Write the final recipe to `runs/<run>/recipe.yaml`; says where the run lies."""
    run = artifact.run_name(run_id)
    name = f"runs/{run}/recipe.yaml"
    storage.write(name, recipe.to_yaml().encode())
    print(f"recipe {recipe.name} for run {run}: {storage.path(name)}")
    return {"recipe": storage.path(name), "root": storage.root, "run": run, "partition": partition(recipe)}


@task
def resolve(params: dict[str, Any], run_id: str) -> dict[str, str]:
    """Recipe file and form to one final recipe."""
    os.chdir(HOME)
    return settle(load(params["recipe"], form.overrides(dict(params))), Storage(params["root"]), run_id)


@task(task_id="resolve")  # type: ignore[untyped-decorator]
def resolve_model(params: dict[str, Any], run_id: str, triggering_asset_events: Any) -> dict[str, str]:
    """As `resolve`, on a corpus that another run made: the one that arrived, or the one that the form names.

    A corpus that arrived and is not the recipe's is left alone: it does not retrain a model by itself.
    """
    os.chdir(HOME)
    arrived = [event for events in triggering_asset_events.values() for event in events]
    recipe = load(params["recipe"], form.overrides(dict(params)))
    storage, source = Storage(params["root"]), params["corpus_run"]
    if arrived:
        told = arrived[-1].extra
        if told["partition"] != partition(recipe):
            raise AirflowSkipException(
                f"recipe {recipe.name} is for corpus {partition(recipe)}, and {told['partition']} arrived"
            )
        storage, source = Storage(told["root"]), told["run"]
    source = artifact.run_name(source) if source else artifact.newest_run(storage, CORPUS_STAGES[-1])
    where = settle(recipe, storage, run_id)
    artifact.adopt(storage, source, where["run"], CORPUS_STAGES)
    print(f"the corpus of run {source}")
    return where


def corpus_stages() -> TaskGroup:
    """From WARC files to token shards."""
    with TaskGroup("corpus", tooltip="Spark: from WARC files to token shards") as group:
        canary, ask = Canary(), AskForExtract(task_id="approve")
        batch = ExtractBatch.partial(task_id="extract_batch", pool=EXTRACT_POOL)
        extract, *others = stages.CORPUS
        # The batches, where there were any, have done its work; `force` was the canary's.
        rest = SparkStage(step=extract, arguments=(), pool=EXTRACT_POOL, trigger_rule=TriggerRule.NONE_FAILED)
        chain(canary, ask, batch.expand(arguments=canary.output), rest, *(SparkStage(step=step) for step in others))
    return group


def model_stages() -> TaskGroup:
    """From token shards to a chat model."""
    with TaskGroup("model", tooltip="DeepSpeed: from token shards to a chat model") as group:
        # Of the launches that wait for a slot, that of the run that got furthest goes first.
        launches = (TrainingStage(step=step, pool=TRAINING_POOL, weight_rule="upstream") for step in stages.MODEL)
        chain(AskForPretraining(task_id="approve"), *launches)
    return group


def report() -> ProcessStage:
    """The page that says what happened."""
    return ProcessStage(task_id="report", stage="report", arguments=["-m", "web.report", *place("root", "run")])


# What an asset's event tells beside its partition: numbers of these stages' manifests.
CORPUS_NUMBERS = {"shard": ("train_tokens", "validation_tokens")}
MODEL_NUMBERS = {
    "pretrain": ("parameters", "loss_last", "bits_per_byte"),
    "evaluation-rl": ("sampled_accuracy", "greedy_accuracy"),
}


def told(where: dict[str, str], numbers: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """What the event of an asset says of a run: where it lies, its page, and how it turned out."""
    storage = Storage(where["root"])
    page = f"{web_url()}/runs/{where['run']}"
    found: dict[str, Any] = {"root": where["root"], "run": where["run"], "partition": where["partition"], "page": page}
    for stage, names in numbers.items():
        content = artifact.of_run(storage, where["run"], stage).content
        found |= {name: content.numbers[name] for name in names if name in content.numbers}
        if content.counts:
            found["documents"] = content.counts.kept
    return found


@task(outlets=[CORPUS])  # type: ignore[untyped-decorator]
def announce_corpus(where: dict[str, str], outlet_events: Any) -> None:
    """Say that the corpus is there: the partition is its crawl."""
    outlet_events[CORPUS].extra = told(where, CORPUS_NUMBERS)
    outlet_events[CORPUS].add_partitions(where["partition"])


@task(outlets=[MODEL])  # type: ignore[untyped-decorator]
def announce_model(where: dict[str, str], outlet_events: Any) -> None:
    """Say that the model is there."""
    outlet_events[MODEL].extra = told(where, MODEL_NUMBERS)
    outlet_events[MODEL].add_partitions(where["partition"])
