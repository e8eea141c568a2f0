"""All runs below a root, the newest first."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from pipeline import artifact
from pipeline.stages import label
from pipeline.storage import Storage
from web.page import template
from web.words import when

NEWEST = 200  # runs that are listed
router = APIRouter()


def runs(storage: Storage) -> list[dict[str, Any]]:
    """The newest runs: name, when their newest stage began, which it is and how it stands."""
    newest = {run: max(begun, key=lambda one: one.started) for run, begun in artifact.pointers(storage).items()}
    ordered = sorted(newest.items(), key=lambda item: -item[1].started)[:NEWEST]
    return [
        {
            "run": run,
            "began": when(one.started),
            "stage": label(one.name),
            "state": one.state,
        }
        for run, one in ordered
    ]


@router.get("/")
def index(request: Request) -> HTMLResponse:
    """The list."""
    storage = request.app.state.storage
    return HTMLResponse(template("runs.html.j2").render(runs=runs(storage), root=storage.root))
