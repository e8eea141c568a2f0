"""The list of all runs below a root, the newest first."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from pipeline import artifact
from pipeline.stages import label
from pipeline.storage import Storage
from web.page import template
from web.words import when

MAX_RUNS = 200  # that are listed
router = APIRouter()


def runs(storage: Storage) -> list[dict[str, Any]]:
    """The newest runs, with label, state and start of their newest stage."""
    newest = {run: max(begun, key=lambda pointer: pointer.started) for run, begun in artifact.pointers(storage).items()}
    ordered = sorted(newest.items(), key=lambda item: -item[1].started)[:MAX_RUNS]
    return [
        {
            "run": run,
            "began": when(pointer.started),
            "stage": label(pointer.name),
            "state": "finished" if pointer.state == "published" else pointer.state,
        }
        for run, pointer in ordered
    ]


@router.get("/")
def index(request: Request) -> HTMLResponse:
    """The page of the list."""
    storage = request.app.state.storage
    return HTMLResponse(template("runs.html.j2").render(runs=runs(storage), root=storage.root))
