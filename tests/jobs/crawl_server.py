"""A server of Common Crawl's layout on this machine, which can refuse and break off."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from jobs import sources


@dataclass
class Server:
    base: str
    files: dict[str, bytes]
    refusals: list[int] = field(default_factory=list)  # statuses to answer before files are served
    cut: list[int] = field(default_factory=list)  # bytes after which an answer breaks off
    seen: list[tuple[str, str | None]] = field(default_factory=list)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state = Server("", {})

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            state.seen.append((self.path, self.headers["Range"]))
            if state.refusals:
                self.send_error(state.refusals.pop(0))
                return
            if self.path not in state.files:
                self.send_error(404)
                return
            data = state.files[self.path]
            start = int((self.headers["Range"] or "bytes=0-")[6:-1])
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(data) - start))
            self.send_header("ETag", '"tag"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data[start:][: state.cut.pop(0) if state.cut else None])

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        state.base = f"http://127.0.0.1:{http.server_port}"
        monkeypatch.setenv(sources.BASE_VARIABLE, state.base)
        monkeypatch.setattr(sources, "_LONGEST_WAIT", 0.01)
        yield state
        http.shutdown()
