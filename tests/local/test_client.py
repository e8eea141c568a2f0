"""The client's token: asked for without a name where all are admins, and with the login elsewhere."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from local.client import Airflow

LOGIN = {"username": "admin", "password": "right"}


class Server(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/auth/token":
            self.answer(200, {"access_token": "everybody's"})
        else:
            self.answer(200, {"seen": self.headers["Authorization"]})

    def do_POST(self) -> None:
        given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.answer(201 if given == LOGIN else 401, {"access_token": "admin's"})

    def answer(self, code: int, body: dict[str, Any]) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_the_token_is_whose_login_it_is(url: str) -> None:
    assert Airflow(url).call("GET", "dags").json() == {"seen": "Bearer everybody's"}
    assert Airflow(url, LOGIN).call("GET", "dags").json() == {"seen": "Bearer admin's"}


def test_a_wrong_password_says_so_and_is_not_told(url: str) -> None:
    with pytest.raises(httpx.HTTPStatusError, match="401 Unauthorized") as told:
        Airflow(url, {**LOGIN, "password": "wrong-one"}).call("GET", "dags")
    assert "wrong-one" not in str(told.value)
