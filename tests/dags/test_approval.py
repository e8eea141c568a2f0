"""A run asks where it passes a bound of its recipe, and goes on by itself where it does not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from airflow.providers.standard.exceptions import HITLRejectException
from airflow.sdk.exceptions import TaskAwaitingInput
from airflow.sdk.timezone import utcnow

from dags.parts import approval
from dags.parts.approval import AskForExtract, AskForPretraining, foretold, language_shift
from inference.network import build
from inference.network import flops_a_token as counted
from pipeline import artifact
from pipeline.artifact import Stage
from pipeline.recipe import load
from pipeline.storage import Storage

RECIPES = Path(__file__).parents[2] / "recipes"
BOUNDS = load(RECIPES / "demo.yaml").approval
CONTEXT = {"task_instance": SimpleNamespace(id="7")}


def canary(storage, run, kept=40, languages=None, cpu=20.0, files=10, canary_files=2, whole=True, keeps="en"):
    """A run that made a canary of 100 pages, and a corpus after it where it is `whole`."""
    numbers = {"files": files, "canary_files": canary_files, "extract": "extract/all/0"}
    built = {"of": run, "filter": {"languages": {keeps: 0.65}}}
    numbers |= {"pages": 100, "kept": kept, "dropped": {}, "languages": languages or {"en": 60, "de": 20}}
    building = artifact.open_stage(storage, run, Stage("canary", 1), built, 1, [])
    made = building.publish([], None, numbers, {"extract_cpu_seconds": cpu})
    if whole:
        artifact.open_stage(storage, run, Stage("shard", 1), {"of": run}, 1, []).publish([])
    return made


@pytest.fixture
def storage(tmp_path):
    return Storage(tmp_path)


def test_a_first_corpus_is_asked_for_its_cost_alone(storage):
    made = canary(storage, "one", cpu=720.0)  # 2 of 10 files: one core hour
    assert foretold(made, None, BOUNDS).reasons == []
    assert foretold(made, None, BOUNDS).figures["core hours of extract, foretold"] == "1.0"
    dear = foretold(canary(storage, "two", cpu=7200.0), None, BOUNDS).reasons
    assert dear == ["extract takes about 10 core hours, 1 need no asking"]


@pytest.mark.parametrize(
    ("change", "asked"),
    [
        ({}, None),
        ({"kept": 47}, None),
        ({"kept": 49}, "pages kept: 22% other than in the corpus before, 20% need no asking"),
        ({"kept": 20}, "pages kept: 50% other than in the corpus before, 20% need no asking"),
        ({"cpu": 29.0}, None),
        ({"cpu": 31.0}, "CPU seconds a page: 55% other than in the corpus before, 50% need no asking"),
        ({"languages": {"en": 54, "de": 26}}, None),
        ({"languages": {"en": 30, "de": 50}}, "38% of the texts are in other languages, 10% need no asking"),
        ({"languages": {"en": 60, "fr": 20}}, "25% of the texts are in other languages, 10% need no asking"),
    ],
)
def test_a_corpus_that_differs_from_the_one_before_is_asked_for(storage, change, asked):
    before, made = canary(storage, "before"), canary(storage, "now", **change)
    assert foretold(made, before, BOUNDS).reasons == ([asked] if asked else [])


def test_a_canary_without_pages_is_asked_for(storage):
    numbers = {"files": 9, "canary_files": 2, "extract": "x", "pages": 0, "kept": 0, "dropped": {}, "languages": {}}
    building = artifact.open_stage(storage, "one", Stage("canary", 1), {}, 1, [])
    made = building.publish([], None, numbers, {"extract_cpu_seconds": 0.0})
    assert foretold(made, canary(storage, "other"), BOUNDS).reasons == ["the canary holds no page"]


def test_the_corpus_before_is_the_last_that_was_finished(storage):
    for run, whole, files in (("first", True, 2), ("second", True, 2), ("rejected", False, 2), ("none", True, 0)):
        canary(storage, run, whole=whole, canary_files=files)
    made = canary(storage, "now", whole=False)
    at = approval.Place(storage.root, "now")
    assert approval.before(at, made).content.recipe["of"] == "second"
    assert approval.before(at, approval.before(at, made)).content.recipe["of"] == "first"
    assert approval.before(at, canary(storage, "german", keeps="de")) is None
    storage.remove(approval.before(at, made).file(artifact.MANIFEST))  # another run makes it anew
    assert approval.before(at, made).content.recipe["of"] == "first"


def test_a_language_shift_is_a_share():
    assert language_shift({"en": 1}, {"en": 99}) == 0
    assert language_shift({"en": 5}, {"de": 7}) == 1
    assert language_shift({}, {}) == 0
    assert language_shift({"en": 3, "de": 1}, {"en": 1, "de": 1}) == pytest.approx(0.25)


def asking(task, recipe, storage, run="now"):
    task.arguments = ["--recipe", str(recipe), "--root", storage.root, "--run", run]
    return task.execute(CONTEXT)


@pytest.fixture
def asked(monkeypatch):
    """What a person would see."""
    found = []
    monkeypatch.setattr(
        "airflow.providers.standard.operators.hitl.upsert_hitl_detail", lambda **told: found.append(told)
    )
    return found


def test_it_goes_on_by_itself_within_the_bounds(storage, asked):
    canary(storage, "now", cpu=1.0)
    assert asking(AskForExtract(task_id="approve"), RECIPES / "demo.yaml", storage) is None
    assert asked == []


def test_it_asks_beyond_them_with_the_figures_and_the_reasons(storage, asked):
    canary(storage, "before")
    canary(storage, "now", kept=10, whole=False)
    with pytest.raises(TaskAwaitingInput):
        asking(AskForExtract(task_id="approve"), RECIPES / "demo.yaml", storage)
    assert asked[0]["subject"].startswith("Go on? pages kept: 75% other")
    assert "| pages kept | 0.1 (corpus before: 0.4) |" in asked[0]["body"]
    assert asked[0]["options"] == ["Approve", "Reject"]


@pytest.mark.parametrize(("chosen", "raises"), [("Approve", None), ("Reject", HITLRejectException)])
def test_the_answer_decides(chosen, raises):
    event = {"chosen_options": [chosen], "params_input": {}, "responded_at": utcnow(), "responded_by_user": None}
    task = AskForExtract(task_id="approve")
    if raises:
        with pytest.raises(raises):
            task.execute_complete({}, event)
    else:
        assert task.execute_complete({}, event)["chosen_options"] == ["Approve"]


@pytest.mark.parametrize(
    ("recipe", "asks"), [("demo.yaml", False), ("gpt2-124m.yaml", False), ("gpt2-1.5b.yaml", True)]
)
def test_pretraining_is_asked_for_by_its_operations(storage, asked, recipe, asks):
    building = artifact.open_stage(storage, "now", Stage("tokenizer", 1), {}, 1, [])
    building.publish([], None, {"vocabulary": 50263, "sha256": "0"})
    task = AskForPretraining(task_id="approve")
    if asks:
        with pytest.raises(TaskAwaitingInput):
            asking(task, RECIPES / recipe, storage)
        assert "pretraining takes 3.4e+20 operations" in asked[0]["subject"]
    else:
        assert asking(task, RECIPES / recipe, storage) is None


@pytest.mark.parametrize("preset", ["qwen3", "llama", "gpt2"])
@pytest.mark.parametrize("tied", [True, False])
def test_operations_are_those_that_the_model_counts(preset, tied):
    change = {"model.preset": preset, "model.tied": tied, "model.heads": 4, "model.width": 256, "model.head_dim": 64}
    model = load(RECIPES / "demo.yaml", change | {"model.kv_heads": 4 if preset == "gpt2" else 2}).model
    network = build(model, 4096, 0, 1, 1)
    assert approval.flops_a_token(model, 4096, 128) == pytest.approx(counted(network, 128), rel=0.01)
