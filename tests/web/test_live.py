"""The live page and the list of runs: what runs, what comes next, what failed and why, and how a model learns."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from pipeline import artifact
from pipeline.artifact import Building, Counts, Identity, Stage
from pipeline.progress import Progress
from pipeline.stages import CANARY, CORPUS, MODEL, STEPS
from pipeline.storage import Storage
from web import report, serve
from web.pages import stages

OF_CORPUS = (CANARY.name, *(step.name for step in CORPUS), "report")
AIRFLOW = "http://127.0.0.1:8080/dags/corpus/runs/one"


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path)


@pytest.fixture
def client(storage: Storage) -> TestClient:
    return TestClient(serve.application(storage.root))


def begin(storage: Storage, name: str, run: str = "one") -> Building:
    identity = Identity(Stage(STEPS[name].stage, 1), {"of": run, "name": name}, 1, [])
    building = artifact.start(storage, run, identity, name=name)
    assert isinstance(building, Building)
    return building


def plan(storage: Storage, run: str = "one", steps: tuple[str, ...] = OF_CORPUS) -> None:
    storage.write(f"runs/{run}/recipe.yaml", b"name: demo\n")
    artifact.write_plan(storage, run, steps, AIRFLOW)


def fail(storage: Storage, name: str, error: str, remedy: str, run: str = "one", **more: Any) -> None:
    pointer = artifact.fail(storage, run, name, error, remedy)
    artifact.write_pointer(storage, run, pointer.model_copy(update=more))


def states(page: str) -> list[str]:
    return [line.partition('"')[0] for line in page.split('<tr class="')[1:]]


def test_a_failed_run_shows_error_remedy_and_log(storage: Storage, client: TestClient) -> None:
    plan(storage)
    begin(storage, "canary").publish([])
    begin(storage, "extract")
    fail(storage, "extract", "no WARC file matches 'x'", "check the path", log=f"{AIRFLOW}/tasks/corpus.extract")
    page = client.get("/runs/one").text
    for text in ("This run failed.", "Extract failed", "no WARC file matches &#39;x&#39;", "check the path"):
        assert text in page
    assert f'href="{AIRFLOW}/tasks/corpus.extract"' in page and f'href="{AIRFLOW}"' in page
    assert states(page) == ["finished", "failed", *["not-run"] * 6], "and none waits"
    assert client.get("/runs/one/stages").status_code == 200
    listed = client.get("/").text
    assert "<strong>failed</strong>" in listed and "no WARC file matches" in listed and "demo" in listed


def test_a_run_that_failed_before_its_first_stage_is_shown(storage: Storage, client: TestClient) -> None:
    fail(storage, "resolve", "recipes/x.yaml does not exist", "check the path")
    page = client.get("/runs/one")
    assert page.status_code == 200 and "recipes/x.yaml does not exist" in page.text
    assert "recipes/x.yaml does not exist" in client.get("/").text


def test_the_report_of_a_failed_run_is_linked_and_does_not_hide_the_failure(
    storage: Storage, client: TestClient
) -> None:
    plan(storage)
    begin(storage, "extract").publish([], Counts(in_=2, kept=1, dropped={"not_200": 1}))
    fail(storage, "filter", "broken", "mend it")
    report.publish(storage, "one")
    page = client.get("/runs/one")
    assert "mend it" in page.text and 'href="/runs/one/report"' in page.text
    assert client.get("/runs/one/stages").status_code == 200
    assert "mend it" in client.get("/runs/one/report").text


def test_a_failure_that_airflow_retries_is_no_failure_of_the_run(storage: Storage, client: TestClient) -> None:
    plan(storage)
    fail(storage, "extract", "the server refuses", "wait", will_retry=True)
    page = client.get("/runs/one").text
    assert "Airflow starts it again by itself" in page and "This run failed" not in page
    assert "<strong>waiting</strong>" in client.get("/").text


@pytest.mark.parametrize("made", [Building.publish, None], ids=["between two stages", "before the first"])
def test_between_two_stages_the_next_one_is_named(storage: Storage, client: TestClient, made: Any) -> None:
    plan(storage)
    if made:
        begin(storage, "canary").publish([])
    page = client.get("/runs/one").text
    assert f"{'Extract' if made else 'Canary'} is next." in page and "No stage" not in page
    assert states(page)[1 if made else 0] == "next" and "approval" not in page
    listed = client.get("/").text
    assert "<strong>waiting</strong>" in listed and "is next" in listed, "also before its first stage"
    began = artifact.Plan(steps=OF_CORPUS, began=time.time() - 600)
    storage.write("runs/one/plan.json", began.model_dump_json().encode())
    assert made or "It may wait in Airflow for an approval" in client.get("/runs/one").text


def test_stages_that_the_dag_does_not_have_do_not_wait(storage: Storage, client: TestClient) -> None:
    plan(storage)
    page = client.get("/runs/one").text
    assert len(states(page)) == len(OF_CORPUS) - 1 and "Pretraining" not in page
    begin(storage, "extract", "by hand").publish([])
    assert states(client.get("/runs/by%20hand").text) == [], "run names are folders"
    begin(storage, "extract", "by-hand").publish([])
    assert states(client.get("/runs/by-hand").text) == ["finished"]


def test_of_a_corpus_that_is_ready_the_report_is_there_while_the_model_is_trained(
    storage: Storage, client: TestClient
) -> None:
    plan(storage, steps=(*OF_CORPUS[:-1], *(step.name for step in MODEL), "report"))
    for name in OF_CORPUS[:-1]:
        begin(storage, name).publish([])
    report.publish(storage, "one")
    page = client.get("/runs/one").text
    assert "Pretraining is next." in page and 'href="/runs/one/report"' in page
    for step in MODEL:
        begin(storage, step.name).publish([])
    assert "Report is next." in client.get("/runs/one").text, "that of the corpus is not the run's"
    report.publish(storage, "one")
    assert client.get("/runs/one/stages").status_code == 205
    assert "<strong>finished</strong>" in client.get("/").text


def learning(storage: Storage, name: str, steps: range, **numbers: Any) -> Building:
    """A stage of training that writes these numbers, functions of the step, a second apart."""
    building = begin(storage, name)
    progress = Progress(storage, building.progress_folder, name, "step")
    for step in steps:
        progress(step, 40, **{key.replace("__", "."): value(step) for key, value in numbers.items()})
    progress.flush()
    part = storage.names(building.progress_folder)[-1]
    lines = [json.loads(line) for line in storage.read(part).splitlines()]
    now = time.time()
    for line in lines:
        line["time"] = now + line["done"] - lines[-1]["done"]
    storage.write(part, "".join(f"{json.dumps(line)}\n" for line in lines).encode())
    began = building.pointer.model_copy(update={"started": lines[0]["time"] - 1})
    artifact.write_pointer(storage, "one", began)
    return building


def test_reinforcement_shows_its_reward_and_not_a_loss(storage: Storage, client: TestClient) -> None:
    reward, loss = lambda step: step / 40, lambda step: -0.2
    learning(storage, "rl", range(1, 11), reward=reward, loss=loss, grad_norm=lambda _: 0.5, lr=lambda _: 1e-5)
    page = client.get("/runs/one").text
    assert ">Reward<" in page and "reward 0.25" in page
    assert "nats" not in page and "loss" not in page
    learning(
        *(storage, "rl", range(1, 11)), reward=reward, loss=loss, **{"arithmetic__sampled_accuracy": lambda _: 0.5}
    )
    assert ">Accuracy, arithmetic<" in client.get("/runs/one").text


def test_training_shows_time_left_learning_rate_and_gradient_norm(storage: Storage, client: TestClient) -> None:
    learning(storage, "pretrain", range(1, 11), loss=lambda s: 7 / s, grad_norm=lambda _: 0.5, lr=lambda _: 3e-4)
    page = client.get("/runs/one").text
    for text in ("10 of 40 steps, about 30.0 s left, loss 0.7", "gradient norm 0.5", "learning rate 3.00e-04"):
        assert text in page
    for title in ("Loss", "Gradient norm", "Learning rate"):
        assert f"<figcaption>{title}<" in page


def test_what_the_model_said_last_is_shown_as_text(storage: Storage, client: TestClient) -> None:
    building = learning(storage, "pretrain", range(1, 3), loss=lambda step: 1.0)
    said = [{"step": n, "prompt": "The", "text": f"<script>{n}</script>\u202e cat"} for n in (1, 2)]
    storage.write(f"{building.work}/samples.jsonl", "".join(json.dumps(row) + "\n" for row in said).encode())
    page = client.get("/runs/one").text
    assert "&lt;script&gt;2" in page and "(step 2)" in page and "\u202e" not in page and "<script>2" not in page
    assert "&lt;script&gt;1" not in page


def test_the_title_bears_the_recipe(storage: Storage, client: TestClient) -> None:
    plan(storage)
    page = client.get("/runs/one").text
    assert "<title>demo – one – crawl2chat</title>" in page and "<h1>demo</h1>" in page


def test_a_stage_that_died_without_a_word_shows_the_age_of_its_last_sign(storage: Storage, client: TestClient) -> None:
    plan(storage)
    building = begin(storage, "extract")
    died = building.pointer.model_copy(update={"started": time.time() - 7200})
    artifact.write_pointer(storage, "one", died)
    plan_before = artifact.Plan(steps=OF_CORPUS, began=time.time() - 7300)
    storage.write("runs/one/plan.json", plan_before.model_dump_json().encode())
    assert "starting, last sign 2 h 0 min ago" in client.get("/runs/one").text
    listed = client.get("/").text
    assert "<strong>running</strong>" in listed and "Extract, last sign 2 h 0 min ago" in listed


def test_the_list_says_state_recipe_beginning_duration_and_result_of_the_run(
    storage: Storage, client: TestClient
) -> None:
    plan(storage, steps=("shard", "pretrain", "evaluation-rl", "report"))
    began = artifact.Plan(steps=("shard", "pretrain", "evaluation-rl", "report"), began=time.time() - 600)
    storage.write("runs/one/plan.json", began.model_dump_json().encode())
    begin(storage, "shard").publish([], numbers={"train_tokens": 412_000})
    assert "<strong>waiting</strong>" in client.get("/").text, "not 'published', as its newest stage is"
    begin(storage, "pretrain").publish([], numbers={"bits_per_byte": 1.874})
    begin(storage, "evaluation-rl").publish([], numbers={"arithmetic.sampled_accuracy": 0.93})
    report.publish(storage, "one")
    page = client.get("/").text
    assert "<strong>finished</strong>" in page and re.search(r">10 min \d+ s<", page)
    assert "412\N{NO-BREAK SPACE}k tokens, 1.874 bits per byte, arithmetic 93" in page


def test_curves_of_a_long_run_are_means_and_give_way_after_a_kill(storage: Storage, monkeypatch: Any) -> None:
    monkeypatch.setattr(stages, "_WHOLE_PARTS", 1)
    building = begin(storage, "pretrain")
    for steps in (range(1, 1200), range(1001, 1101)):  # killed at 1,199, resumed at 1,000
        progress = Progress(storage, building.progress_folder, "pretrain", "step")
        for step in steps:
            progress(step, 2000, loss=1.0, **({"validation_loss": 2.0} if step % 100 == 0 else {}))
        progress.flush()
    by_key = stages.curves(storage, building.pointer)
    xs = [x for x, _ in by_key["loss"]]
    assert xs == sorted(xs) and xs[-1] == 1100 and len(xs) < 250
    assert [x for x, _ in by_key["validation_loss"]] == [float(x) for x in range(100, 1101, 100)]
