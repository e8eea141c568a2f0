"""Serves the pages of all runs below a root: the progress of a run while it is going, then its report.

    python -m web.serve --root .crawl2chat/data [--host 127.0.0.1] [--port 8090]

Airflow shows a run's page as a tab of the DAG run. On any address but loopback the pages need a password (HTTP Basic,
any user name), which is set in CRAWL2CHAT_WEB_PASSWORD; without it, the server does not start there.
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

from pipeline import command, errors
from pipeline.errors import CrawlToChatError, MachineError
from pipeline.storage import Storage
from web.authentication import PASSWORD, Authentication, is_loopback
from web.pages import live, runs

# Only our own scripts run; only pages of the same origin, and those of `framed_by`, which is Airflow, may frame ours.
POLICY = (
    "default-src 'none'; style-src 'self' 'unsafe-inline'; script-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'self' {}"
)
PAGES = (runs, live)  # modules with a `router`


def ancestors(framed_by: str) -> str:
    """These addresses, and one of loopback by both its names: a browser compares names, and people type either."""
    addresses = []
    for address in framed_by.split():
        scheme, _, place = address.partition("://")
        host, colon, port = place.partition(":")
        names = ("127.0.0.1", "localhost") if host in ("127.0.0.1", "localhost") else (host,)
        addresses += [f"{scheme}://{name}{colon}{port}" for name in names]
    return " ".join(addresses)


def application(root: str, password: str | None = None, framed_by: str = "") -> FastAPI:
    """The web application of one root. `framed_by`: addresses whose pages may frame ours, besides our own."""
    app = FastAPI(title="crawl2chat", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.storage = Storage(root)
    policy = POLICY.format(ancestors(framed_by)).strip()
    authentication = None if password is None else Authentication(password)

    @app.middleware("http")
    async def protect(request: Request, handle: Callable[[Request], Awaitable[Response]]) -> Response:
        # Health checks have no password.
        if authentication and request.url.path != "/healthz" and (refusal := authentication.refused(request)):
            return refusal
        response = await handle(request)
        response.headers["Content-Security-Policy"] = policy
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cache-Control"] = "no-store"
        return response

    @app.exception_handler(CrawlToChatError)
    async def show_error(_request: Request, error: Exception) -> Response:
        return PlainTextResponse(str(error), 500)

    @app.get("/healthz")
    def healthy() -> PlainTextResponse:
        app.state.storage.exists("runs")  # an error if the root cannot be read; a list of all runs would take long
        return PlainTextResponse("ok")

    app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"))
    for page in PAGES:
        app.include_router(page.router)
    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_root(parser)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8090)
    parser.add_argument("--framed-by", default="", help="address of Airflow, whose pages may frame ours")
    options = parser.parse_args()
    password = os.environ.get(PASSWORD) or None
    local = is_loopback(options.host)
    if not local and password is None:
        raise MachineError(
            f"other machines can connect to {options.host}, but {PASSWORD} is not set", "set it, or serve on 127.0.0.1"
        )
    app: Any = application(options.root, password, options.framed_by)
    if local:  # DNS rebinding: a page of another site must not read ours by a name that resolves to this machine
        app = TrustedHostMiddleware(app, allowed_hosts=["127.0.0.1", "localhost", "[::1]"])
    uvicorn.run(app, host=options.host, port=options.port, log_level="warning")


if __name__ == "__main__":
    errors.run(main)
