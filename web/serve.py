"""The pages of all runs below a root: each run live while it goes, its report once it is there.

    python -m web.serve --root .crawl2chat/data [--host 127.0.0.1] [--port 8090]

Airflow shows a run's page as a tab of the DAG run. On another address than loopback a password is asked for (HTTP
Basic, any name): that of CRAWL2CHAT_WEB_PASSWORD, without which it does not start there.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import functools
import hmac
import ipaddress
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, PlainTextResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware

from pipeline import artifact, errors
from pipeline.artifact import Counts, Pointer
from pipeline.errors import CrawlToChatError, MachineError
from pipeline.progress import Event, events, last_event
from pipeline.storage import Storage
from web import report
from web.charts import Series, line_chart

PASSWORD = "CRAWL2CHAT_WEB_PASSWORD"
SHOWN = ("loss", "bits_per_byte", "reward", "sampled_accuracy", "tokens_per_second")  # of a stage's progress
NEWEST = 200  # runs that are listed
# Wrong passwords from one address, and for how long they count. A person mistypes a few; 20 a minute guess nothing.
MOST_WRONG, WRONG_SECONDS = 20, 60.0
# Scripts and frames are our own; Airflow, on this machine or behind the same name, may frame the pages.
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self' {}"
)
LIVE = """
const part = document.getElementById("stages");
const look = async () => {
  const answer = await fetch(location.pathname + "/stages", {cache: "no-store"});
  if (answer.status === 205) location.reload();
  else if (answer.ok) part.innerHTML = await answer.text();
};
const again = () => setTimeout(() => look().catch(() => {}).finally(again), 2000);
if (part) again();
"""


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
    event = last_event(storage, f"{pointer.work}/progress")
    if event is None or event.time < pointer.started:  # of an attempt before
        return Row(label, "running", None, "starting", time.time() - pointer.started)
    return Row(label, "running", event.done / max(1, event.total), told_by(event), time.time() - pointer.started)


@functools.lru_cache(1000)
def counted(storage: Storage, folder: str, content_hash: str) -> Counts | None:
    """What came in and stayed; a manifest of 90,000 files is read once, not every two seconds."""
    return artifact.read(storage, folder).content.counts


def told_by(event: Event) -> str:
    """How far a stage is, with the numbers that say most."""
    numbers = [
        f"{name.replace('_', ' ')} {report.shown(event.numbers[name])}" for name in SHOWN if name in event.numbers
    ]
    return ", ".join([f"{event.done:,} of {event.total:,} {event.unit}s", *numbers])


def stages(storage: Storage, run: str) -> dict[str, Any]:
    """All that the template of the live part shows: rows, and the losses of the training stage that runs."""
    pointers = {name: artifact.pointer(storage, run, name) for name in report.STAGES}
    running = [pointer for pointer in pointers.values() if pointer and pointer.state == "running"]
    curves = []
    for pointer in running:
        if pointer.name not in report.MODELS:
            continue
        seen = [event for event in events(storage, f"{pointer.work}/progress") if "loss" in event.numbers]
        points = [(float(event.done), float(event.numbers["loss"])) for event in seen]
        label = report.STAGES[pointer.name]
        curves.append(line_chart(f"{label}, loss", "step", "nats a token", [Series(label, points)]))
    return {
        "rows": [row(storage, label, pointers[name]) for name, label in report.STAGES.items()],
        "curves": [curve for curve in curves if curve],
        "running": bool(running),
    }


def runs(storage: Storage) -> list[dict[str, Any]]:
    """The newest runs: name, when their newest stage began, which it is and how it stands."""
    newest = {run: max(begun, key=lambda one: one.started) for run, begun in artifact.pointers(storage).items()}
    ordered = sorted(newest.items(), key=lambda item: -item[1].started)[:NEWEST]
    return [
        {
            "run": run,
            "began": report.when(one.started),
            "stage": report.STAGES.get(one.name, one.name),
            "state": one.state,
        }
        for run, one in ordered
    ]


def application(root: str, password: str | None = None, framed_by: str = "") -> FastAPI:
    """The web application over one root. `framed_by`: addresses whose pages may frame ours, besides its own."""
    storage = Storage(root)
    app = FastAPI(title="crawl2chat", docs_url=None, redoc_url=None, openapi_url=None)
    door = None if password is None else Door(password)

    @app.middleware("http")
    async def guarded(request: Request, handle: Callable[[Request], Awaitable[Response]]) -> Response:
        if door is not None and request.url.path != "/healthz" and (refused := door.refused(request)):
            return refused
        answer = await handle(request)
        answer.headers["Content-Security-Policy"] = POLICY.format(framed_by).strip()
        answer.headers["X-Content-Type-Options"] = "nosniff"
        answer.headers["Referrer-Policy"] = "no-referrer"
        answer.headers["Cache-Control"] = "no-store"
        return answer

    @app.exception_handler(CrawlToChatError)
    async def told(_request: Request, error: Exception) -> Response:
        return PlainTextResponse(str(error), 500)

    @app.get("/healthz")
    def healthy() -> PlainTextResponse:
        storage.names("runs")
        return PlainTextResponse("ok")

    @app.get("/live.js")
    def live() -> Response:
        return Response(LIVE, media_type="text/javascript")

    @app.get("/")
    def index() -> HTMLResponse:
        return HTMLResponse(report.template("runs.html.j2").render(runs=runs(storage), root=storage.root))

    @app.get("/runs/{run_id}")
    def page(run_id: str) -> HTMLResponse:
        run = artifact.run_name(run_id)
        made = artifact.pointer(storage, run, report.STAGE.name)
        if made and made.state != "running":
            published = artifact.read(storage, made.folder)
            return HTMLResponse(storage.read(published.file(report.FILE)))
        return HTMLResponse(report.template("live.html.j2").render(run=run, **stages(storage, run)))

    @app.get("/runs/{run_id}/stages")
    def part(run_id: str) -> Response:
        run = artifact.run_name(run_id)
        made = artifact.pointer(storage, run, report.STAGE.name)
        if made and made.state != "running":
            return Response(status_code=205)  # the report is there: load the page again
        return HTMLResponse(report.template("stages.html.j2").render(**stages(storage, run)))

    return app


class Door:
    """Lets in who brings the password, and no address that brought too many wrong ones, not even with the right one."""

    def __init__(self, password: str) -> None:
        self._password = password
        self._wrong: dict[str, list[float]] = {}  # address to when

    def refused(self, request: Request) -> Response | None:
        """The answer to who stays outside, else None."""
        now, address = time.monotonic(), request.client.host if request.client else ""
        self._wrong = {
            at: recent
            for at, times in self._wrong.items()
            if (recent := [one for one in times if now - one < WRONG_SECONDS])
        }
        if len(self._wrong.get(address, [])) >= MOST_WRONG:
            return PlainTextResponse("too many wrong passwords", 429, {"Retry-After": str(round(WRONG_SECONDS))})
        if admitted(request, self._password):
            return None
        if "authorization" in request.headers:  # a browser first asks without
            self._wrong.setdefault(address, []).append(now)
        return PlainTextResponse("a password, please", 401, {"WWW-Authenticate": 'Basic realm="crawl2chat"'})


def admitted(request: Request, password: str) -> bool:
    """Whether a request bears the password."""
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != "basic":
        return False
    try:
        _, _, told = base64.b64decode(given, validate=True).partition(b":")
    except binascii.Error:
        return False
    return hmac.compare_digest(told, password.encode())


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder or s3:// URI below which artifacts lie")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8090)
    parser.add_argument("--framed-by", default="", help="address of Airflow, whose pages may frame ours")
    given = parser.parse_args()
    password = os.environ.get(PASSWORD) or None
    local = is_loopback(given.host)
    if not local and password is None:
        raise MachineError(
            f"{given.host} is reached from other machines, and {PASSWORD} is not set", "set it, or serve on 127.0.0.1"
        )
    app: Any = application(given.root, password, given.framed_by)
    if local:  # a page of another site must not read ours through a name that leads here
        app = TrustedHostMiddleware(app, allowed_hosts=["127.0.0.1", "localhost", "[::1]"])
    uvicorn.run(app, host=given.host, port=given.port, log_level="warning")


if __name__ == "__main__":
    errors.run(main)
