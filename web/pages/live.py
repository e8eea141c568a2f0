"""The page of a run: the state of each stage, reloaded every two seconds, and the report once nothing is running."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import HTMLResponse

from pipeline import artifact
from pipeline.artifact import Counts, Pointer, Published
from pipeline.numbers import PROGRESS, named
from pipeline.progress import Event, last_event, part_events, parts
from pipeline.stages import REPORT, ROAD, STEPS
from pipeline.storage import Storage
from web import report
from web.charts import Point, Series, line_chart
from web.page import template
from web.report.learning import points
from web.words import shown

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
    """Units done, and the event's numbers that are in `PROGRESS`."""
    numbers = [f"{name.replace('_', ' ')} {shown(value)}" for name, value in named(event.numbers, PROGRESS).items()]
    return ", ".join([f"{event.done:,} of {event.total:,} {event.unit}s", *numbers])


def losses(storage: Storage, pointer: Pointer) -> list[Point]:
    """(step, loss) of a training stage; the steps that a killed attempt lost give way to those of the next attempt."""
    names = parts(storage, pointer.progress_folder)
    curve: list[Point] = []
    for name in names:
        # Only the newest part still grows; the others are read once per attempt.
        read = part_losses if name == names[-1] else complete_losses
        for step, loss in read(storage, name, pointer.started):
            while curve and curve[-1][0] >= step:
                curve.pop()
            curve.append((step, loss))
    return curve


def part_losses(storage: Storage, name: str, _started: float) -> list[Point]:
    """(step, loss) of one file of progress events; a step that was skipped has no loss."""
    return points((event.numbers | {"step": event.done} for event in part_events(storage, name)), "loss")


# A part holds 500 events; this many parts are a run of half a million steps.
complete_losses = functools.lru_cache(1000)(part_losses)


def stages(storage: Storage, run: str) -> dict[str, Any]:
    """The values of `stages.html.j2`: a row per stage, and the loss of each training stage that is running."""
    pointers = {step.name: artifact.pointer(storage, run, step.name) for step in ROAD}
    running = [pointer for pointer in pointers.values() if pointer and pointer.state == "running"]
    curves = []
    for pointer in running:
        step = STEPS[pointer.name]
        if step.model:
            line = Series(step.label, losses(storage, pointer))
            curves.append(line_chart(f"{step.label}, loss", "step", "nats per token", [line]))
    return {
        "rows": [row(storage, step.label, pointers[step.name]) for step in ROAD],
        "curves": [curve for curve in curves if curve],
        "running": bool(running),
        "has_report": published_report(storage, run) is not None,
        "run": run,
    }


def published_report(storage: Storage, run: str) -> Published | None:
    """The report of a run; None if it is not published yet, or is being made again."""
    pointer = artifact.pointer(storage, run, REPORT.name)
    if pointer is None or pointer.state == "running" or not artifact.is_published(storage, pointer.folder):
        return None
    return artifact.read(storage, pointer.folder)


def html_of(published: Published) -> HTMLResponse:
    """A report as a page."""
    return HTMLResponse(report.served(published.storage.read(published.file(report.FILE)).decode()))


@router.get("/runs/{run_id}")
def page(run_id: str, request: Request) -> HTMLResponse:
    """The report if it is published and no stage is running, else the live page, with a link to the report."""
    storage, run = request.app.state.storage, artifact.run_name(run_id)
    values = stages(storage, run)
    published = None if values["running"] else published_report(storage, run)
    return html_of(published) if published else HTMLResponse(template("live.html.j2").render(**values))


@router.get("/runs/{run_id}/stages")
def part(run_id: str, request: Request) -> Response:
    """The part of the live page that changes; status 205 makes live.js reload the page, for the report."""
    values = stages(request.app.state.storage, artifact.run_name(run_id))
    if values["has_report"] and not values["running"]:
        return Response(status_code=205)
    return HTMLResponse(template("stages.html.j2").render(**values))


@router.get("/runs/{run_id}/report")
def latest_report(run_id: str, request: Request) -> HTMLResponse:
    """The report that was published last, also while a stage of the run is running again."""
    published = published_report(request.app.state.storage, artifact.run_name(run_id))
    if published is None:
        raise HTTPException(404, "this run has no report")
    return html_of(published)
