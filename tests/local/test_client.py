"""The client's token: requested without a login where all users are admins, and with it elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from local.client import Airflow
from pipeline.errors import MachineError
from tests.server import serving

LOGIN = {"username": "admin", "password": "right"}


class Server(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/auth/token":
            self.answer(200, {"access_token": "everybody's"})
        elif self.headers["Authorization"] == "Bearer stale":
            self.answer(401, {})
        else:
            self.answer(200, {"seen": self.headers["Authorization"], "wanted": self.headers["Accept"]})

    def do_POST(self) -> None:
        login = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.answer(201 if login == LOGIN else 401, {"access_token": "admin's"})

    def answer(self, code: int, body: dict[str, Any]) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())


@pytest.fixture
def url() -> Iterator[str]:
    with serving(Server) as address:
        yield f"http://{address}"


def test_the_token_is_whose_login_it_is(url: str) -> None:
    assert Airflow(url).call("GET", "dags").json()["seen"] == "Bearer everybody's"
    assert Airflow(url, LOGIN).call("GET", "dags").json()["seen"] == "Bearer admin's"


def test_a_wrong_password_is_an_error_that_does_not_show_it(url: str) -> None:
    with pytest.raises(MachineError, match="answers 401 to /auth/token") as raised:
        Airflow(url, {**LOGIN, "password": "wrong-one"}).call("GET", "dags")
    assert "wrong-one" not in str(raised.value)


def test_an_expired_token_is_renewed_for_the_same_call(url: str) -> None:
    client = Airflow(url)
    client._token = "stale"
    seen = client.call("GET", "dags", headers={"Accept": "application/json"}).json()
    assert seen == {"seen": "Bearer everybody's", "wanted": "application/json"}
