"""The page of a run: its state and that of each stage, reloaded every two seconds, and the report once it is over.

A run that failed keeps this page, with error and remedy at its top and a link to the report: clearing its task in
Airflow continues it. Of a run that is not below the root the page says so, with status 404.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import HTMLResponse

from pipeline import artifact
from pipeline.artifact import Published, RunState
from pipeline.stages import REPORT, label
from pipeline.storage import Storage
from web import report
from web.page import template
from web.pages.stages import charts, last_samples, rows
from web.words import ago

LONG_SECONDS = 90.0  # between two stages: starting a task of Airflow takes 10 to 60 s
router = APIRouter()


def live(storage: Storage, run: str) -> dict[str, Any]:
    """The values of `live.html.j2` and `stages.html.j2`."""
    pointers, plan = artifact.pointers_of(storage, run), artifact.plan(storage, run)
    at = artifact.state_of(storage, pointers, plan)
    return {
        "run": run,
        "recipe": artifact.recipe_name(storage, run),
        "at": at,
        "headline": headline(at),
        "failures": [(label(pointer.name), pointer) for pointer in pointers.values() if pointer.state == "failed"],
        "rows": rows(storage, pointers, plan, at),
        "charts": charts(storage, pointers),
        "samples": last_samples(storage, run, pointers),
        "has_report": published_report(storage, run) is not None,
        "airflow": plan.airflow if plan else "",
    }


def headline(at: RunState) -> str:
    """What the run does at the moment, in a sentence."""
    if at.state == "running":
        return f"{label(at.step)} is running."
    if at.state == "waiting":
        next_step = f"{label(at.step)} is next. The last sign of this run is {ago(at.last_sign)} old."
        long = ago(at.last_sign, LONG_SECONDS)
        return f"{next_step} It may wait in Airflow for an approval, a free slot or a retry." if long else next_step
    return "This run failed." if at.state == "failed" else "This run is finished."


def published_report(storage: Storage, run: str) -> Published | None:
    """The report of a run; None if it is not published yet, or is being made again."""
    pointer = artifact.pointer(storage, run, REPORT.name)
    if pointer is None or not pointer.finished or not artifact.is_published(storage, pointer.folder):
        return None
    return artifact.read(storage, pointer.folder)


def final_report(storage: Storage, run: str, at: RunState) -> Published | None:
    """The report of a run that is finished; of any other the live page says more."""
    return published_report(storage, run) if at.state == "finished" else None


def html_of(published: Published) -> HTMLResponse:
    """A report as a page."""
    return HTMLResponse(report.served(published.storage.read(published.file(report.FILE)).decode()))


def unknown(storage: Storage, run: str) -> HTMLResponse:
    """The page of a run of which nothing is below the root; it reloads itself, since a run may just be beginning."""
    return HTMLResponse(template("unknown.html.j2").render(run=run, root=storage.root), 404)


@router.get("/runs/{run_id}")
def page(run_id: str, request: Request) -> HTMLResponse:
    """The report of a finished run; of any other the live page, with a link to the report if there is one."""
    storage, run = request.app.state.storage, artifact.run_name(run_id)
    if not artifact.run_exists(storage, run):
        return unknown(storage, run)
    values = live(storage, run)
    published = final_report(storage, run, values["at"])
    return html_of(published) if published else HTMLResponse(template("live.html.j2").render(**values))


@router.get("/runs/{run_id}/stages")
def part(run_id: str, request: Request) -> Response:
    """The part of the live page that changes; status 205 makes live.js reload the page, for the report."""
    storage, run = request.app.state.storage, artifact.run_name(run_id)
    if not artifact.run_exists(storage, run):
        return unknown(storage, run)
    values = live(storage, run)
    if final_report(storage, run, values["at"]):
        return Response(status_code=205)
    return HTMLResponse(template("stages.html.j2").render(**values))


@router.get("/runs/{run_id}/report")
def latest_report(run_id: str, request: Request) -> HTMLResponse:
    """The report that was published last, also while a stage of the run is running again."""
    published = published_report(request.app.state.storage, artifact.run_name(run_id))
    if published is None:
        raise HTTPException(404, "this run has no report")
    return html_of(published)
