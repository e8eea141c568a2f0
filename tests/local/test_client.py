"""The client's token, requested without a login where all users are admins, and whether the DAGs can be triggered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import httpx
import pytest

from local.client import Airflow, Task
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


START = 1_800_000_000.0  # 2027-01-15 08:00:00 UTC
OLDER, NEWER = "2027-01-15T07:59:59Z", "2027-01-15T08:00:01.5Z"


def answering(**answers: Any) -> Airflow:
    """A client of a server with these answers, by the last part of the path; any other path has none."""

    def handle(request: httpx.Request) -> httpx.Response:
        answer = answers.get(request.url.path.rpartition("/")[2])
        return httpx.Response(503) if answer is None else httpx.Response(200, json=answer)

    client = Airflow("http://airflow.example")
    client._http = httpx.Client(base_url="http://airflow.example", transport=httpx.MockTransport(handle))
    return client


@pytest.mark.parametrize(
    ("status", "parsed", "ready"),
    [("healthy", NEWER, True), ("healthy", OLDER, False), ("healthy", None, False), ("unhealthy", NEWER, False)],
)
def test_a_dag_is_ready_when_it_was_parsed_since(status: str, parsed: str | None, ready: bool) -> None:
    health, details = {"scheduler": {"status": status}}, {"last_parsed_time": parsed}
    client = answering(token={"access_token": "x"}, health=health, crawl_to_chat=details)
    assert client.ready("crawl_to_chat", START) is ready


def test_a_server_without_a_token_yet_is_waited_for() -> None:
    client = answering()
    assert not client.ready("crawl_to_chat", START)
    client.check_imports(START)


def test_an_import_error_counts_if_it_is_of_this_start() -> None:
    def client(timestamp: str) -> Airflow:
        error = {"timestamp": timestamp, "filename": "dags/a.py", "stack_trace": "the reason"}
        return answering(token={"access_token": "x"}, importErrors={"import_errors": [error]})

    client(OLDER).check_imports(START)
    with pytest.raises(MachineError, match=r"dags/a.py does not load:\nthe reason"):
        client(NEWER).check_imports(START)
    with pytest.raises(MachineError):
        client(OLDER).check_imports()


def paged(total: dict[str, int], most: int = 100) -> tuple[Airflow, list[httpx.Request]]:
    """A client of an Airflow with so many entries in each list, of which it gives at most `most` at a time."""
    requests: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        kind, params = request.url.path.rpartition("/")[2], request.url.params
        if kind == "token":
            return httpx.Response(200, json={"access_token": "x"})
        if request.method == "PATCH":
            return httpx.Response(200, json={})
        begin = int(params.get("offset", 0))
        numbers = range(begin, min(total[kind], begin + min(most, int(params.get("limit", 50)))))
        instance = {"task_id": "a", "state": "success", "try_number": 1, "start_date": None, "end_date": None}
        name = {"taskInstances": "task_instances", "dagRuns": "dag_runs"}[kind]
        entries = [instance | {"map_index": number, "dag_run_id": f"r{number}"} for number in numbers]
        return httpx.Response(200, json={name: entries, "total_entries": total[kind]})

    client = Airflow("http://airflow.example")
    client._http = httpx.Client(base_url="http://airflow.example", transport=httpx.MockTransport(handle))
    return client, requests


@pytest.mark.parametrize(("count", "most"), [(0, 100), (99, 100), (100, 100), (250, 100), (250, 30)])
def test_all_tasks_of_a_run_are_read_however_many_a_page_has(count: int, most: int) -> None:
    client, requests = paged({"taskInstances": count}, most)
    assert [task.index for task in client.tasks("crawl_to_chat", "r")] == list(range(count))
    assert {request.url.params.get("order_by") for request in requests[1:]} == {"id"}  # or pages could overlap


def test_all_runs_that_a_killed_airflow_left_are_failed() -> None:
    client, requests = paged({"dagRuns": 130})
    client.fail_active("crawl_to_chat")
    failed = [request.url.path.rpartition("/")[2] for request in requests if request.method == "PATCH"]
    assert failed == [f"r{number}" for number in range(130)] * 2  # running and queued


def test_the_end_of_a_log_is_the_error_and_not_what_stands_behind_it() -> None:
    """Behind a failed Spark stage stands the provider's error, with hundreds of lines of its output once more."""
    behind = {"exc_type": "AirflowException", "exc_value": "Cannot execute: spark-submit\nLast spark-submit output:\nx"}
    content = [
        {"event": "error: no file x\n-> check the path"},
        {
            "event": "Task failed",
            "error_detail": [{"exc_type": "StageFailed", "exc_value": "extract ended\n3"}, behind],
        },
    ]
    client = answering(token={"access_token": "x"}, **{"1": {"content": content}})
    log = client.log("crawl_to_chat", "r", Task("corpus.extract", -1, "failed", 1, None, None))
    assert log == ["error: no file x", "-> check the path", "Task failed", "StageFailed: extract ended", "3"]
