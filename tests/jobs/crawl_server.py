"""A server of Common Crawl's layout on this machine, which can refuse and break off."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

import pytest

from jobs.archive import sources
from pipeline import locations
from tests.server import serving


@dataclass
class Server:
    base: str
    files: dict[str, bytes]
    refusals: list[int] = field(default_factory=list)  # statuses to answer before files are served
    cut: list[int] = field(default_factory=list)  # bytes after which an answer breaks off
    weather: Callable[[], str] = lambda: "fine"  # of each GET: fine, cut, stall, xml, or a status to answer
    seen: list[tuple[str, str | None]] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=lambda: {"ETag": '"tag"'})
    ranges: bool = True  # whether it knows them


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state = Server("", {})

    class CommonCrawl(BaseHTTPRequestHandler):
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
            data, weather = state.files[self.path], state.weather() if self.command == "GET" else "fine"
            if weather.isdigit():
                self.send_error(int(weather))
                return
            if weather == "xml":
                data = b"<?xml version='1.0'?><Error><Code>SlowDown</Code></Error>"
            asked = self.headers["Range"] if state.ranges and weather != "xml" else None  # an error page knows none
            start = min(len(data), int((asked or "bytes=0-")[6:].partition("-")[0]))
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(data) - start))
            for name, value in state.headers.items():
                self.send_header(name, value)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            if self.command == "GET":
                most = (len(data) - start) // 3 if weather in ("cut", "stall") else None
                with suppress(ConnectionError):  # a client that wants no more of an error page
                    self.wfile.write(data[start:][: state.cut.pop(0) if state.cut else most])
                if weather == "stall":
                    time.sleep(0.5)

    with serving(CommonCrawl) as address:
        state.base = f"http://{address}"
        monkeypatch.setenv(locations.BASE_VARIABLE, state.base)
        monkeypatch.setattr(sources, "_LONGEST_WAIT", 0.01)
        yield state
