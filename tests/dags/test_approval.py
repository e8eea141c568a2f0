"""A run needs an approval where it exceeds a bound of its recipe, and continues by itself where it does not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from airflow.providers.standard.exceptions import HITLRejectException
from airflow.sdk.exceptions import TaskAwaitingInput
from airflow.sdk.timezone import utcnow

from dags.parts import approval
from dags.parts.approval import ApproveExtract, ApprovePretraining, forecast, language_shift, previous_canary
from inference.network import build
from inference.network import flops_per_token as counted
from pipeline import artifact
from pipeline.artifact import Identity, Stage
from pipeline.recipe import load
from pipeline.storage import Storage

RECIPES = Path(__file__).parents[2] / "recipes"
BOUNDS = load(RECIPES / "demo.yaml").approval
SHIFTED = "of the texts are in other languages than in the previous corpus; more than 10% needs approval"
CONTEXT = {"task_instance": SimpleNamespace(id="7")}


def canary(storage, run, kept=40, languages=None, cpu=20.0, files=10, canary_files=2, whole=True, keeps="en"):
    """A run that made a canary of 100 pages, and a corpus after it where it is `whole`."""
    numbers = {"files": files, "canary_files": canary_files, "extract": "extract/all/0"}
    built = {"of": run, "filter": {"languages": {keeps: 0.65}}}
    numbers |= {"pages": 100, "kept": kept, "dropped": {}, "languages": languages or {"en": 60, "de": 20}}
    building = artifact.start(storage, run, Identity(Stage("canary", 1), built, 1, []))
    made = building.publish([], None, numbers, {"extract_cpu_seconds": cpu})
    if whole:
        artifact.start(storage, run, Identity(Stage("shard", 1), {"of": run}, 1, [])).publish([])
    return made


@pytest.fixture
def storage(tmp_path):
    return Storage(tmp_path)


def test_a_first_corpus_needs_approval_for_its_cost_alone(storage):
    made = canary(storage, "one", cpu=720.0)  # 2 of 10 files: one core hour
    assert forecast(made, None, BOUNDS).exceeded == []
    assert forecast(made, None, BOUNDS).figures["core hours of extract, estimated"] == "1.0"
    expensive = forecast(canary(storage, "two", cpu=7200.0), None, BOUNDS).exceeded
    assert expensive == ["extract takes about 10 core hours; more than 1 needs approval"]


@pytest.mark.parametrize(
    ("change", "exceeded"),
    [
        ({}, None),
        ({"kept": 47}, None),
        ({"kept": 49}, "pages kept: 22% different from the previous corpus; more than 20% needs approval"),
        ({"kept": 20}, "pages kept: 50% different from the previous corpus; more than 20% needs approval"),
        ({"cpu": 29.0}, None),
        ({"cpu": 31.0}, "CPU seconds per page: 55% different from the previous corpus; more than 50% needs approval"),
        ({"languages": {"en": 54, "de": 26}}, None),
        ({"languages": {"en": 30, "de": 50}}, f"38% {SHIFTED}"),
        ({"languages": {"en": 60, "fr": 20}}, f"25% {SHIFTED}"),
    ],
)
def test_a_corpus_that_differs_from_the_previous_one_needs_approval(storage, change, exceeded):
    previous, current = canary(storage, "before"), canary(storage, "now", **change)
    assert forecast(current, previous, BOUNDS).exceeded == ([exceeded] if exceeded else [])


def test_a_canary_without_pages_needs_approval(storage):
    numbers = {"files": 9, "canary_files": 2, "extract": "x", "pages": 0, "kept": 0, "dropped": {}, "languages": {}}
    building = artifact.start(storage, "one", Identity(Stage("canary", 1), {}, 1, []))
    made = building.publish([], None, numbers, {"extract_cpu_seconds": 0.0})
    assert forecast(made, canary(storage, "other"), BOUNDS).exceeded == ["the canary has no pages"]


def test_the_previous_corpus_is_the_newest_that_was_finished(storage):
    for run, whole, files in (("first", True, 2), ("second", True, 2), ("rejected", False, 2), ("none", True, 0)):
        canary(storage, run, whole=whole, canary_files=files)
    current = canary(storage, "now", whole=False)
    at = approval.Place(storage.root, "now")
    previous = previous_canary(at, current)
    assert previous.content.recipe["of"] == "second"
    assert previous_canary(at, previous).content.recipe["of"] == "first"
    assert previous_canary(at, canary(storage, "german", keeps="de")) is None
    storage.remove(previous.file(artifact.MANIFEST))  # as if another run were making it again
    assert previous_canary(at, current).content.recipe["of"] == "first"


def test_a_language_shift_is_a_share():
    assert language_shift({"en": 1}, {"en": 99}) == 0
    assert language_shift({"en": 5}, {"de": 7}) == 1
    assert language_shift({}, {}) == 0
    assert language_shift({"en": 3, "de": 1}, {"en": 1, "de": 1}) == pytest.approx(0.25)


def executed(task, recipe, storage, run="now"):
    task.arguments = ["--recipe", str(recipe), "--root", storage.root, "--run", run]
    return task.execute(CONTEXT)


@pytest.fixture
def requests(monkeypatch):
    """The requests that a person would see."""
    sent = []
    monkeypatch.setattr(
        "airflow.providers.standard.operators.hitl.upsert_hitl_detail", lambda **details: sent.append(details)
    )
    return sent


def test_within_the_bounds_nobody_is_asked(storage, requests):
    canary(storage, "now", cpu=1.0)
    assert executed(ApproveExtract(task_id="approve"), RECIPES / "demo.yaml", storage) is None
    assert requests == []


def test_beyond_them_the_request_has_the_figures_and_what_is_exceeded(storage, requests):
    canary(storage, "before")
    canary(storage, "now", kept=10, whole=False)
    with pytest.raises(TaskAwaitingInput):
        executed(ApproveExtract(task_id="approve"), RECIPES / "demo.yaml", storage)
    assert requests[0]["subject"].startswith("Continue? pages kept: 75% different")
    assert "| pages kept | 0.1 (previous corpus: 0.4) |" in requests[0]["body"]
    assert requests[0]["options"] == ["Approve", "Reject"]


@pytest.mark.parametrize(("chosen", "raises"), [("Approve", None), ("Reject", HITLRejectException)])
def test_the_answer_decides(chosen, raises):
    event = {"chosen_options": [chosen], "params_input": {}, "responded_at": utcnow(), "responded_by_user": None}
    task = ApproveExtract(task_id="approve")
    if raises:
        with pytest.raises(raises):
            task.execute_complete({}, event)
    else:
        assert task.execute_complete({}, event)["chosen_options"] == ["Approve"]


@pytest.mark.parametrize(
    ("recipe", "needed"), [("demo.yaml", False), ("gpt2-124m.yaml", False), ("gpt2-1.5b.yaml", True)]
)
def test_pretraining_needs_approval_for_its_operations(storage, requests, recipe, needed):
    building = artifact.start(storage, "now", Identity(Stage("tokenizer", 1), {}, 1, []))
    building.publish([], None, {"vocabulary": 50297, "sha256": "0" * 64})
    task = ApprovePretraining(task_id="approve")
    if needed:
        with pytest.raises(TaskAwaitingInput):
            executed(task, RECIPES / recipe, storage)
        assert "pretraining takes 3.4e+20 operations" in requests[0]["subject"]
    else:
        assert executed(task, RECIPES / recipe, storage) is None


@pytest.mark.parametrize("preset", ["qwen3", "llama", "gpt2"])
@pytest.mark.parametrize("tied", [True, False])
def test_operations_are_those_that_the_model_counts(preset, tied):
    change = {"model.preset": preset, "model.tied": tied, "model.heads": 4, "model.width": 256, "model.head_dim": 64}
    model = load(RECIPES / "demo.yaml", change | {"model.kv_heads": 4 if preset == "gpt2" else 2}).model
    network = build(model, 4096, 0, 1, 1)
    assert approval.flops_per_token(model, 4096, 128) == pytest.approx(counted(network, 128), rel=0.01)
