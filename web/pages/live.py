"""The page of a run: the state of each stage, reloaded every two seconds, and the report once it is published."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from pipeline import artifact
from pipeline.artifact import Counts, Pointer
from pipeline.numbers import named
from pipeline.progress import Event, events, last_event
from pipeline.stages import REPORT, ROAD, STEPS
from pipeline.storage import Storage
from web import report
from web.charts import Series, line_chart
from web.page import template
from web.words import shown

# Numbers of a progress event that are shown.
NUMBERS = ("loss", "bits_per_byte", "reward", "sampled_accuracy", "tokens_per_second")
router = APIRouter()


@dataclass(frozen=True)
class Row:
    """A stage on the live page. `state`: waiting, running, finished or reused; `share` done (0…1), None if unknown."""

    label: str
    state: str
    share: float | None
    details: str
    seconds: float | None


def row(storage: Storage, label: str, pointer: Pointer | None) -> Row:
    """The row of a stage, from its pointer and its progress events."""
    if pointer is None:
        return Row(label, "waiting", None, "", None)
    if pointer.state != "running":
        if not artifact.is_published(storage, pointer.folder):  # removed, or another run makes it again with --force
            return Row(label, "finished", 1.0, "its artifact is missing at the moment", pointer.seconds)
        counts = artifact_counts(storage, pointer.folder, pointer.content_hash)
        details = f"{counts.in_:,} in, {counts.kept:,} kept" if counts else ""
        return Row(label, "reused" if pointer.state == "reused" else "finished", 1.0, details, pointer.seconds)
    event = last_event(storage, pointer.progress_folder)
    if event is None or event.time < pointer.started:  # it is of an earlier attempt
        return Row(label, "running", None, "starting", time.time() - pointer.started)
    share = event.done / max(1, event.total)
    return Row(label, "running", share, progress_text(event), time.time() - pointer.started)


@functools.lru_cache(1000)
def artifact_counts(storage: Storage, folder: str, content_hash: str) -> Counts | None:
    """The counts of an artifact. Cached: a manifest may list 90,000 files, too many to read every two seconds."""
    return artifact.read(storage, folder).content.counts


def progress_text(event: Event) -> str:
    """Units done, and the event's numbers that are in `NUMBERS`."""
    numbers = [f"{name.replace('_', ' ')} {shown(value)}" for name, value in named(event.numbers, NUMBERS).items()]
    return ", ".join([f"{event.done:,} of {event.total:,} {event.unit}s", *numbers])


def stages(storage: Storage, run: str) -> dict[str, Any]:
    """The values of `stages.html.j2`: a row per stage, and the loss of each training stage that is running."""
    pointers = {step.name: artifact.pointer(storage, run, step.name) for step in ROAD}
    running = [pointer for pointer in pointers.values() if pointer and pointer.state == "running"]
    curves = []
    for pointer in running:
        step = STEPS[pointer.name]
        if not step.model:
            continue
        with_loss = [event for event in events(storage, pointer.progress_folder) if "loss" in event.numbers]
        points = [(float(event.done), float(event.numbers["loss"])) for event in with_loss]
        curves.append(line_chart(f"{step.label}, loss", "step", "nats per token", [Series(step.label, points)]))
    return {
        "rows": [row(storage, step.label, pointers[step.name]) for step in ROAD],
        "curves": [curve for curve in curves if curve],
        "running": bool(running),
    }


def published_report(storage: Storage, run: str) -> str | None:
    """The report of a run as HTML, None if it is not published yet."""
    pointer = artifact.pointer(storage, run, REPORT.name)
    if pointer is None or pointer.state == "running":
        return None
    published = artifact.read(storage, pointer.folder)
    return storage.read(published.file(report.FILE)).decode()


@router.get("/runs/{run_id}")
def page(run_id: str, request: Request) -> HTMLResponse:
    """The report if it is published, else the live page."""
    storage, run = request.app.state.storage, artifact.run_name(run_id)
    html = published_report(storage, run)
    return HTMLResponse(html or template("live.html.j2").render(run=run, **stages(storage, run)))


@router.get("/runs/{run_id}/stages")
def part(run_id: str, request: Request) -> Response:
    """The part of the live page that changes; status 205 makes live.js reload the page, for the report."""
    storage, run = request.app.state.storage, artifact.run_name(run_id)
    if published_report(storage, run) is not None:
        return Response(status_code=205)
    return HTMLResponse(template("stages.html.j2").render(**stages(storage, run)))
