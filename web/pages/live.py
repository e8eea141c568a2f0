"""A run while it goes: where each stage stands, asked for again every two seconds, and its report once it is there."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from pipeline import artifact
from pipeline.artifact import Counts, Pointer
from pipeline.progress import Event, events, last_event
from pipeline.stages import REPORT, ROAD, STEPS
from pipeline.storage import Storage
from web import report
from web.charts import Series, line_chart
from web.page import template
from web.words import shown

SHOWN = ("loss", "bits_per_byte", "reward", "sampled_accuracy", "tokens_per_second")  # of a stage's progress
router = APIRouter()


@dataclass(frozen=True)
class Row:
    """A stage as the live page shows it. `state`: waiting, running, made or reused; `share` of 0…1, or None."""

    label: str
    state: str
    share: float | None
    told: str
    seconds: float | None


def row(storage: Storage, label: str, pointer: Pointer | None) -> Row:
    """Where a stage stands."""
    if pointer is None:
        return Row(label, "waiting", None, "", None)
    if pointer.state != "running":
        if not artifact.is_published(storage, pointer.folder):  # somebody removed it, or another run forces it
            return Row(label, "made", 1.0, "not there at the moment", pointer.seconds)
        counts = counted(storage, pointer.folder, pointer.content_hash)
        told = f"{counts.in_:,} in, {counts.kept:,} kept" if counts else ""
        return Row(label, "reused" if pointer.state == "reused" else "made", 1.0, told, pointer.seconds)
    event = last_event(storage, pointer.progress_folder)
    if event is None or event.time < pointer.started:  # of an attempt before
        return Row(label, "running", None, "starting", time.time() - pointer.started)
    return Row(label, "running", event.done / max(1, event.total), told_by(event), time.time() - pointer.started)


@functools.lru_cache(1000)
def counted(storage: Storage, folder: str, content_hash: str) -> Counts | None:
    """What came in and stayed; a manifest of 90,000 files is read once, not every two seconds."""
    return artifact.read(storage, folder).content.counts


def told_by(event: Event) -> str:
    """How far a stage is, with the numbers that say most."""
    numbers = [f"{name.replace('_', ' ')} {shown(event.numbers[name])}" for name in SHOWN if name in event.numbers]
    return ", ".join([f"{event.done:,} of {event.total:,} {event.unit}s", *numbers])


def stages(storage: Storage, run: str) -> dict[str, Any]:
    """All that the template of the live part shows: rows, and the losses of the training stage that runs."""
    pointers = {step.name: artifact.pointer(storage, run, step.name) for step in ROAD}
    running = [pointer for pointer in pointers.values() if pointer and pointer.state == "running"]
    curves = []
    for pointer in running:
        step = STEPS[pointer.name]
        if not step.model:
            continue
        seen = [event for event in events(storage, pointer.progress_folder) if "loss" in event.numbers]
        points = [(float(event.done), float(event.numbers["loss"])) for event in seen]
        curves.append(line_chart(f"{step.label}, loss", "step", "nats per token", [Series(step.label, points)]))
    return {
        "rows": [row(storage, step.label, pointers[step.name]) for step in ROAD],
        "curves": [curve for curve in curves if curve],
        "running": bool(running),
    }


def finished(storage: Storage, run: str) -> str | None:
    """The report of a run, or None where it is not made."""
    made = artifact.pointer(storage, run, REPORT.name)
    if made is None or made.state == "running":
        return None
    published = artifact.read(storage, made.folder)
    return storage.read(published.file(report.FILE)).decode()


@router.get("/runs/{run_id}")
def page(run_id: str, request: Request) -> HTMLResponse:
    """The report, or the live page."""
    storage, run = request.app.state.storage, artifact.run_name(run_id)
    html = finished(storage, run)
    return HTMLResponse(html or template("live.html.j2").render(run=run, **stages(storage, run)))


@router.get("/runs/{run_id}/stages")
def part(run_id: str, request: Request) -> Response:
    """The part of the live page that changes; 205 asks the browser to load the page again."""
    storage, run = request.app.state.storage, artifact.run_name(run_id)
    if finished(storage, run) is not None:
        return Response(status_code=205)
    return HTMLResponse(template("stages.html.j2").render(**stages(storage, run)))
