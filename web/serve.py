"""The pages of all runs below a root: each run live while it goes, its report once it is there.

    python -m web.serve --root .crawl2chat/data [--host 127.0.0.1] [--port 8090]

Airflow shows a run's page as a tab of the DAG run. On another address than loopback a password is asked for (HTTP
Basic, any name): that of CRAWL2CHAT_WEB_PASSWORD, without which it does not start there.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse
from fastapi.staticfiles import StaticFiles
from starlette.middleware.trustedhost import TrustedHostMiddleware

from pipeline import errors
from pipeline.errors import CrawlToChatError, MachineError
from pipeline.storage import Storage
from web.authentication import PASSWORD, Authentication, is_loopback
from web.pages import live, runs

# Scripts and frames are our own; Airflow, on this machine or behind the same name, may frame the pages.
POLICY = (
    "default-src 'none'; style-src 'self' 'unsafe-inline'; script-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'self' {}"
)
PAGES = (runs, live)  # one router each


def application(root: str, password: str | None = None, framed_by: str = "") -> FastAPI:
    """The web application over one root. `framed_by`: addresses whose pages may frame ours, besides its own."""
    app = FastAPI(title="crawl2chat", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.storage = Storage(root)
    authentication = None if password is None else Authentication(password)

    @app.middleware("http")
    async def guarded(request: Request, handle: Callable[[Request], Awaitable[Response]]) -> Response:
        # Whoever watches over the server has no password.
        if authentication and request.url.path != "/healthz" and (refusal := authentication.refused(request)):
            return refusal
        answer = await handle(request)
        answer.headers["Content-Security-Policy"] = POLICY.format(framed_by).strip()
        answer.headers["X-Content-Type-Options"] = "nosniff"
        answer.headers["Referrer-Policy"] = "no-referrer"
        answer.headers["Cache-Control"] = "no-store"
        return answer

    @app.exception_handler(CrawlToChatError)
    async def described(_request: Request, error: Exception) -> Response:
        return PlainTextResponse(str(error), 500)

    @app.get("/healthz")
    def healthy() -> PlainTextResponse:
        app.state.storage.names("runs")
        return PlainTextResponse("ok")

    app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"))
    for page in PAGES:
        app.include_router(page.router)
    return app


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
