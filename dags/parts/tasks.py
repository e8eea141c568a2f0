"""The tasks that the DAGs share: resolving a recipe, the stages of a corpus and of a model, asset events."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from airflow.sdk import Asset, TaskGroup, TriggerRule, chain, task
from airflow.sdk.exceptions import AirflowSkipException

from dags.parts import documents, form, pods
from dags.parts.approval import ApproveExtract, ApprovePretraining
from dags.parts.links import web_url
from dags.parts.operators import HOME, Canary, ExtractBatch, ProcessStage, SparkStage, TrainingStage
from dags.parts.place import place
from pipeline import artifact, inputs, stages
from pipeline.numbers import named
from pipeline.recipe import Recipe, load
from pipeline.storage import Storage

ROOT = os.environ.get("CRAWL2CHAT_ROOT", ".crawl2chat/data")
RECIPE = os.environ.get("CRAWL2CHAT_RECIPE", "recipes/demo.yaml")  # of runs without a form
EXTRACT_POOL = os.environ.get("CRAWL2CHAT_EXTRACT_POOL", "default_pool")  # its slots limit batches at a time
TRAINING_POOL = os.environ.get("CRAWL2CHAT_TRAINING_POOL", "default_pool")  # its slots limit launches at a time
CORPUS, MODEL = Asset("crawl2chat_corpus"), Asset("crawl2chat_model")
CORPUS_STAGES = tuple(step.name for step in stages.CORPUS)
CORPUS_SECTIONS = ("seed", *stages.sections(stages.CORPUS), "approval")
MODEL_SECTIONS = ("seed", *stages.sections(stages.MODEL), "approval")
_log = logging.getLogger("airflow.task")


def partition(recipe: Recipe) -> str:
    """The partition key of a recipe's corpus: the crawl, or the recipe's name if its input is files."""
    return recipe.input.crawl or recipe.name


def write_recipe(recipe: Recipe, storage: Storage, run_id: str) -> dict[str, str]:
    """Write the final recipe to `runs/<run>/recipe.yaml`; returns where the run is, for the other tasks."""
    run = artifact.run_name(run_id)
    name = f"runs/{run}/recipe.yaml"
    storage.write(name, recipe.to_yaml().encode())
    print(f"recipe {recipe.name} for run {run}: {storage.path(name)}")
    return {"recipe": storage.path(name), "root": storage.root, "run": run, "partition": partition(recipe)}


def final_recipe(params: dict[str, Any]) -> Recipe:
    """The recipe of a filled form, read from the project's folder as the stages do; logs what the form changes."""
    os.chdir(HOME)
    changed = form.overrides(dict(params))
    recipe = load(params["recipe"], changed)
    for line in form.changes(params["recipe"], changed):
        _log.info("differs from %s: %s", params["recipe"], line)
    return recipe


def check_inputs(recipe: Recipe, storage: Storage, sections: Sequence[str] | None) -> None:
    """Raise `InputError` where something is missing of what these sections, or all, read; a retry would not help."""
    for line in inputs.check(recipe, storage, sections):
        _log.warning("not checked: %s", line)


@task(executor_config=pods.SMALL)  # type: ignore[untyped-decorator]
def resolve(params: dict[str, Any], run_id: str, sections: Sequence[str] | None = None) -> dict[str, str]:
    """Combines recipe file and form into the final recipe of the run, and checks it.

    All that the recipe reads must be there: WARC files, the crawl, lists, conversations, benchmarks, weights. What is
    missing is named here, before anything is spent. The log lists what the form changes. Correct the form and trigger
    a new run: *Clear* repeats this one with the same form.
    """
    recipe, storage = final_recipe(params), Storage(params["root"])
    check_inputs(recipe, storage, sections)
    return write_recipe(recipe, storage, run_id)


@task(task_id="resolve", executor_config=pods.SMALL)  # type: ignore[untyped-decorator]
def resolve_model(params: dict[str, Any], run_id: str, triggering_asset_events: Any) -> dict[str, str]:
    """As in `corpus`, for the shards of another run: the one of the asset event, or the one that the form names.

    Combines recipe file and form into the final recipe, and checks that all that it reads is there. Skipped, with all
    that follows, if the event's corpus is not the recipe's: it must not retrain the model.
    """
    asset_events = [event for events in triggering_asset_events.values() for event in events]
    recipe = final_recipe(params)
    storage, source = Storage(params["root"]), params["corpus_run"]
    if asset_events:
        corpus = asset_events[-1].extra
        if corpus["partition"] != partition(recipe):
            raise AirflowSkipException(
                f"recipe {recipe.name} is for corpus {partition(recipe)}, the new corpus is {corpus['partition']}"
            )
        storage, source = Storage(corpus["root"]), corpus["run"]
    check_inputs(recipe, storage, MODEL_SECTIONS)
    source = artifact.run_name(source) if source else artifact.newest_run(storage, CORPUS_STAGES[-1])
    where = write_recipe(recipe, storage, run_id)
    artifact.adopt(storage, source, where["run"], CORPUS_STAGES)
    print(f"uses the corpus of run {source}")
    return where


BATCH = """One of up to 20 batches of WARC files, as many at a time as the pool has slots; skipped for fewer than 200.

"""


def corpus_stages() -> TaskGroup:
    """The stages from WARC files to token shards."""
    with TaskGroup("corpus", tooltip="Spark: from WARC files to token shards") as group:
        canary, approve = Canary(), ApproveExtract(task_id="approve")
        extract, *others = stages.CORPUS
        batch = ExtractBatch.partial(
            task_id="extract_batch", pool=EXTRACT_POOL, doc_md=BATCH + documents.of_step(extract)
        )
        # Extracts what no batch has, and publishes. Without FORCE, which the canary has applied to extract as well.
        rest = SparkStage(step=extract, arguments=(), pool=EXTRACT_POOL, trigger_rule=TriggerRule.NONE_FAILED)
        chain(canary, approve, batch.expand(arguments=canary.output), rest, *(SparkStage(step=step) for step in others))
    return group


def model_stages() -> TaskGroup:
    """The stages from token shards to a chat model."""
    with TaskGroup("model", tooltip="DeepSpeed: from token shards to a chat model") as group:
        # Of the launches that wait for a slot, the one of the run that is furthest gets it.
        launches = (TrainingStage(step=step, pool=TRAINING_POOL, weight_rule="upstream") for step in stages.MODEL)
        chain(ApprovePretraining(task_id="approve"), *launches)
    return group


def report() -> ProcessStage:
    """The run's report, published like a stage."""
    arguments = ["-m", "web.report", *place("root", "run")]
    document = documents.of_step(stages.REPORT)
    return ProcessStage(
        task_id="report", stage="report", arguments=arguments, doc_md=document, executor_config=pods.SMALL
    )


# Numbers in the extra of an asset's event, by the stage whose manifest has them.
CORPUS_NUMBERS = {"shard": ("train_tokens", "validation_tokens")}
MODEL_NUMBERS = {
    "pretrain": ("parameters", "loss_last", "bits_per_byte"),
    "evaluation-rl": ("sampled_accuracy", "greedy_accuracy"),
}


def event_extra(where: dict[str, str], numbers: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """The extra of an asset's event: where the run is, its page, and its most important numbers."""
    storage = Storage(where["root"])
    page = f"{web_url()}/runs/{where['run']}"
    extra: dict[str, Any] = {"root": where["root"], "run": where["run"], "partition": where["partition"], "page": page}
    for stage, names in numbers.items():
        content = artifact.of_run(storage, where["run"], stage).content
        extra |= named(content.numbers, names)
        if content.counts:
            extra["documents"] = content.counts.kept
    return extra


@task(outlets=[CORPUS], executor_config=pods.SMALL)  # type: ignore[untyped-decorator]
def announce_corpus(where: dict[str, str], outlet_events: Any) -> None:
    """Emits the event that the corpus is ready, in the partition of its crawl.

    The event of the asset `crawl2chat_corpus` starts a run of the DAG `model`. Its extra holds the run, its page, and
    the numbers of documents and tokens.
    """
    outlet_events[CORPUS].extra = event_extra(where, CORPUS_NUMBERS)
    outlet_events[CORPUS].add_partitions(where["partition"])


@task(outlets=[MODEL], executor_config=pods.SMALL)  # type: ignore[untyped-decorator]
def announce_model(where: dict[str, str], outlet_events: Any) -> None:
    """Emits the event that the model is ready, in the partition of its corpus.

    The extra of the event of the asset `crawl2chat_model` holds the run, its page, the loss and the accuracies.
    """
    outlet_events[MODEL].extra = event_extra(where, MODEL_NUMBERS)
    outlet_events[MODEL].add_partitions(where["partition"])
