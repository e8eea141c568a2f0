"""A corpus emits an event for its partition; a model is trained on the corpus that its recipe names, and no other."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from airflow.sdk import PartitionedAssetTimetable, PartitionedAtRuntime
from airflow.sdk.definitions.mappedoperator import MappedOperator
from airflow.sdk.exceptions import AirflowSkipException
from airflow.serialization.serialized_objects import DagSerialization

from dags import backfill, corpus, crawl_to_chat, model
from dags.parts import form, tasks
from dags.parts.operators import TrainingStage
from local import airflow
from pipeline import artifact
from pipeline.artifact import Counts, Identity, Stage
from pipeline.errors import ArtifactError, InputError
from pipeline.recipe import load
from pipeline.storage import Storage

REPOSITORY = Path(__file__).parents[2]
RECIPE = str(REPOSITORY / "recipes/demo.yaml")


def publish(storage: Storage, run: str, stage: str, numbers=None, kept: int = 7) -> None:
    building = artifact.start(storage, run, Identity(Stage(stage, 1), {"of": run}, 1, []), name=stage)
    building.publish([], Counts(in_=kept + 3, kept=kept, dropped={"x": 3}), numbers)


@pytest.fixture
def storage(tmp_path):
    """Two runs that made a corpus, `old` and `new`."""
    storage = Storage(tmp_path)
    for run in ("old", "new"):
        for stage in tasks.CORPUS_STAGES:
            publish(storage, run, stage, {"train_tokens": 900, "validation_tokens": 100} if stage == "shard" else None)
    return storage


def resolved(storage: Storage, events=(), **filled):
    params = {"recipe": RECIPE, "root": storage.root, "corpus_run": None} | filled
    return tasks.resolve_model.function(params, "manual__1", {tasks.CORPUS: list(events)} if events else {})


def arrived(storage: Storage, run: str, partition: str):
    return SimpleNamespace(extra={"root": storage.root, "run": run, "partition": partition})


def folders(storage: Storage, run: str) -> set[str]:
    return {artifact.pointer(storage, run, stage).folder for stage in tasks.CORPUS_STAGES}


def test_the_whole_road_is_the_two_halves_one_after_the_other():
    whole, first, second = (
        [task.task_id for task in module.dag.topological_sort()] for module in (crawl_to_chat, corpus, model)
    )
    assert first[-2:] == ["report", "announce_corpus"] and second[-2:] == ["report", "announce_model"]
    assert whole == [*first[:-2], *second[1:-1]]
    assert isinstance(corpus.dag.timetable, PartitionedAtRuntime)
    assert isinstance(model.dag.timetable, PartitionedAssetTimetable)


def test_each_form_has_the_fields_that_its_stages_read():
    fields = {module: set(module.dag.params) for module in (crawl_to_chat, corpus, model)}
    assert fields[corpus] | fields[model] == fields[crawl_to_chat] | {"corpus_run"}
    both = {key.split(".")[0] for key in fields[corpus] & fields[model] if "." in key}
    assert both == {"approval"}
    assert "warcs" in fields[corpus] and "warcs" not in fields[model]
    assert form.overrides({"corpus_run": "old", "seed": 4}) == {"seed": 4}


def test_a_model_takes_the_newest_corpus_or_the_one_that_is_named(storage):
    where = resolved(storage)
    assert (where["run"], where["partition"]) == ("manual__1", "demo")
    assert folders(storage, "manual__1") == folders(storage, "new")
    resolved(storage, corpus_run="old")
    assert folders(storage, "manual__1") == folders(storage, "old")
    assert artifact.pointer(storage, "manual__1", "shard").state == "reused"
    with pytest.raises(ArtifactError, match="nothing"):
        resolved(storage, corpus_run="nothing")


def test_a_new_corpus_is_used_if_the_recipe_names_it(storage):
    resolved(storage, [arrived(storage, "old", "demo")])
    assert folders(storage, "manual__1") == folders(storage, "old")
    with pytest.raises(AirflowSkipException, match="the new corpus is CC-MAIN-2025-05"):
        resolved(storage, [arrived(storage, "old", "CC-MAIN-2025-05")])


def test_trainings_of_all_runs_share_a_pool_and_the_run_that_is_furthest_goes_first():
    stages = [task for task in model.dag.tasks if isinstance(task, TrainingStage)]
    assert {task.pool for task in stages} == {tasks.TRAINING_POOL}
    read = DagSerialization.from_dict(DagSerialization.to_dict(model.dag))  # as the scheduler does
    weights = {}
    for task in (read.get_task(stage.task_id) for stage in stages):
        weights[task.task_id.removeprefix("model.")] = task.weight_rule.get_weight(SimpleNamespace(task=task))
    order = ["pretrain", "evaluate_base", "sft", "evaluate_sft", "rl", "evaluate_rl"]
    assert sorted(weights, key=weights.__getitem__) == order
    assert len(set(weights.values())) == len(order)


def test_each_installation_makes_the_pools_that_it_names():
    compose = yaml.safe_load((REPOSITORY / "docker/compose.yaml").read_text())["services"]["init"]
    chart = yaml.safe_load((REPOSITORY / "helm/crawl2chat/files/airflow-values.yaml").read_text())
    template = (REPOSITORY / "helm/crawl2chat/templates/airflow-values.yaml").read_text()
    chart_environment = dict(re.findall(r"{name: (CRAWL2CHAT_\w+_POOL), value: (\w+)}", template))
    installations = {
        "compose": (compose["environment"], compose["command"][-1]),
        "helm": (chart_environment, chart["migrateDatabaseJob"]["args"][-1]),
    }
    for place, (environment, script) in installations.items():
        for name, pool in airflow.POOLS.items():
            assert environment[name] == pool, place
            assert re.search(rf"^ *pool {pool} \d", script, re.M), place


def test_the_partition_is_the_crawl_or_the_name_of_the_recipe():
    assert tasks.partition(load(RECIPE)) == "demo"
    assert tasks.partition(load(RECIPE, {"input.warcs": [], "input.crawl": "CC-MAIN-2025-05"})) == "CC-MAIN-2025-05"


def test_an_event_has_numbers_and_the_page(storage):
    where = {"root": storage.root, "run": "new", "partition": "demo", "recipe": RECIPE}
    event, keys = SimpleNamespace(extra=None), []
    event.add_partitions = keys.append
    tasks.announce_corpus.function(where, {tasks.CORPUS: event})
    assert keys == ["demo"]
    assert event.extra == {
        "root": storage.root,
        "run": "new",
        "partition": "demo",
        "page": "http://127.0.0.1:8090/runs/new",
        "train_tokens": 900,
        "validation_tokens": 100,
        "documents": 7,
    }


def test_only_dags_are_parsed():
    """Everything else in the folder is in .airflowignore."""
    folder = Path(corpus.__file__).parent
    listed = {line for line in (folder / ".airflowignore").read_text().splitlines() if not line.startswith("#")}
    assert {path.name for path in folder.glob("*.py")} - listed == {
        "backfill.py",
        "corpus.py",
        "crawl_to_chat.py",
        "model.py",
    }


@pytest.mark.parametrize("module", [backfill, corpus, crawl_to_chat, model])
def test_every_dag_and_every_task_is_described(module):
    assert 40 < len(module.dag.description) < 100
    assert "More settings" in module.dag.doc_md and "Live and report" in module.dag.doc_md
    for task in module.dag.tasks:
        document = task.partial_kwargs.get("doc_md") if isinstance(task, MappedOperator) else task.doc_md
        assert document and len(document) > 80, task.task_id


def test_the_document_of_a_stage_says_what_it_does_and_how_to_run_it_by_hand():
    document = crawl_to_chat.dag.get_task("corpus.filter").doc_md
    assert document.startswith("**Filter** (`jobs/filter.py`; section of the recipe: `filter`)")
    assert "\n    spark-submit jobs/filter.py --recipe" in document


def test_a_corpus_of_another_recipe_ends_a_run_before_its_inputs_are_checked(storage):
    missing = {"sft.conversations": ["talks.jsonl"]}
    with pytest.raises(AirflowSkipException):
        resolved(storage, [arrived(storage, "old", "CC-MAIN-2025-05")], **missing)
    with pytest.raises(InputError, match=r"sft\.conversations: talks\.jsonl does not exist"):
        resolved(storage, [arrived(storage, "old", "demo")], **missing)
    resolved(storage, **{"warcs": ["nosuch.warc"]})  # its corpus is made: the archives may be gone
