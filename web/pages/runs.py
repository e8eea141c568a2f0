"""The list of all runs below a root, the newest first."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from pipeline import artifact
from pipeline.artifact import Pointer, RunState
from pipeline.numbers import asked_tasks
from pipeline.stages import AFTER_RL, BEFORE_RL, label
from pipeline.storage import Storage
from web.page import template
from web.pages.stages import SILENT_SECONDS
from web.words import ago, percent, short, when

MAX_RUNS = 200  # that are listed
router = APIRouter()


def runs(storage: Storage) -> list[dict[str, Any]]:
    """The newest runs, with state, recipe, beginning, duration and result of each."""
    by_run = {run: {pointer.name: pointer for pointer in found} for run, found in artifact.pointers(storage).items()}
    last = {run: max((to.started for to in found.values()), default=math.inf) for run, found in by_run.items()}
    listed = []
    for run in sorted(by_run, key=lambda run: -last[run])[:MAX_RUNS]:  # one without a stage has just begun
        at = artifact.state_of(storage, by_run[run], artifact.plan(storage, run))
        listed.append(
            {
                "run": run,
                "recipe": artifact.recipe_name(storage, run),
                "state": at.state,
                "doing": doing(at),
                "began": at.began,
                "date": when(at.began),
                "seconds": at.seconds,
                "result": result(storage, by_run[run], at),
            }
        )
    return sorted(listed, key=lambda listed_run: -listed_run["began"])


def doing(at: RunState) -> str:
    """The stage that runs, is next or failed, and the age of the run's last sign where that is long."""
    text = {"running": "{}", "waiting": "{} is next", "failed": "{}"}.get(at.state, "").format(label(at.step))
    silent = at.state in ("running", "waiting") and ago(at.last_sign, SILENT_SECONDS)
    return f"{text}, last sign {silent} ago" if silent else text


def result(storage: Storage, pointers: Mapping[str, Pointer], at: RunState) -> str:
    """What the run has come to: tokens, bits per byte, accuracies; of a run that failed, the error."""
    if at.state == "failed":
        return pointers[at.step].error.splitlines()[0] if pointers[at.step].error else ""
    parts = []
    if tokens := numbers(storage, pointers.get("shard")).get("train_tokens"):
        parts.append(f"{short(tokens)} tokens")
    if bits := numbers(storage, pointers.get("pretrain")).get("bits_per_byte"):
        parts.append(f"{bits:.3f} bits per byte")
    for step in (AFTER_RL, BEFORE_RL):
        measured = numbers(storage, pointers.get(step.name))
        accuracies = {task: measured.get(f"{task}.sampled_accuracy") for task in asked_tasks(measured)}
        if accuracies := {task: share for task, share in accuracies.items() if share is not None}:
            parts += [f"{task} {percent(share)}" for task, share in accuracies.items()]
            break
    return ", ".join(parts)


def numbers(storage: Storage, pointer: Pointer | None) -> dict[str, Any]:
    """The numbers of a stage's artifact; empty where it has none."""
    if pointer is None or not pointer.finished or not artifact.is_published(storage, pointer.folder):
        return {}
    return artifact_numbers(storage, pointer.folder, pointer.content_hash)


@functools.lru_cache(1000)
def artifact_numbers(storage: Storage, folder: str, content_hash: str) -> dict[str, Any]:
    """The numbers of an artifact. Cached, as `stages.artifact_counts`."""
    return artifact.read(storage, folder).content.numbers


@router.get("/")
def index(request: Request) -> HTMLResponse:
    """The page of the list."""
    storage = request.app.state.storage
    return HTMLResponse(template("runs.html.j2").render(runs=runs(storage), root=storage.root))
