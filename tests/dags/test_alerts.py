"""A failure and an approval are reported by the connection `crawl2chat_alerts`, and never stand in a task's way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from dags.backfill import dag as backfill
from dags.crawl_to_chat import dag
from dags.parts.alerts import ApprovalNeeded, Failed
from tests.server import serving

TASK = SimpleNamespace(
    dag_id="corpus", run_id="manual__1", task_id="corpus.filter", log_url="https://airflow.example.org/log"
)
CONTEXT = {
    "ti": TASK,
    "exception": RuntimeError("filter ended with exit code 3 <b>"),
    "task": SimpleNamespace(subject="Continue? extract takes about 10 core hours", body="| WARC files | 90,000 |"),
}


class Hook(BaseHTTPRequestHandler):
    received: list[tuple[str, dict[str, Any]]]
    status: int

    def do_POST(self) -> None:
        self.received.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
        self.send_response(self.status)
        self.end_headers()


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hook]]:
    """A webhook, to which the connection points."""
    handler = type("Handler", (Hook,), {"received": [], "status": 200})
    with serving(handler) as address:
        connection = {"conn_type": "http", "host": f"http://{address}/services", "password": "T0/B0/secret"}
        monkeypatch.setenv("AIRFLOW_CONN_CRAWL2CHAT_ALERTS", json.dumps(connection))
        yield handler


def test_a_failure_is_posted_with_its_reason_and_links(hook: type[Hook]) -> None:
    Failed()(CONTEXT)
    [(path, message)] = hook.received
    assert path == "/services/T0/B0/secret" and message.keys() == {"text"}
    for part in ("corpus.filter failed", "exit code 3", "/runs/manual__1", TASK.log_url):
        assert part in message["text"]


def test_an_approval_is_posted_with_what_the_run_exceeds(hook: type[Hook]) -> None:
    ApprovalNeeded()(CONTEXT)
    [(_, message)] = hook.received
    assert "corpus.filter waits for an approval" in message["text"] and "10 core hours" in message["text"]


def test_a_message_that_cannot_be_sent_is_a_warning_without_the_secret(
    hook: type[Hook], caplog: pytest.LogCaptureFixture
) -> None:
    hook.status = 500
    with mock.patch.object(Failed, "log", SimpleNamespace(warning=mock.Mock())) as log:
        Failed()(CONTEXT)
    assert len(hook.received) == 1
    assert "secret" not in str(log.warning.call_args) and "crawl2chat_alerts" in str(log.warning.call_args)


def test_without_a_connection_nothing_is_sent() -> None:
    with mock.patch("dags.parts.alerts.send") as send:
        Failed()(CONTEXT)
    send.assert_not_called()


def test_a_mail_goes_to_the_addresses_of_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    extra = {"to": ["ops@example.org"], "from_email": "airflow@example.org", "disable_ssl": True, "disable_tls": True}
    connection = {"conn_type": "smtp", "host": "mail.example.org", "port": 25, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_CRAWL2CHAT_ALERTS", json.dumps(connection))
    with mock.patch("airflow.providers.smtp.hooks.smtp.smtplib.SMTP") as server:
        Failed()(CONTEXT)
    sender, to, message = server.return_value.sendmail.call_args.kwargs.values()
    assert sender == "airflow@example.org" and to == ["ops@example.org"]
    assert "corpus.filter failed" in message


def test_every_task_reports_its_failure_and_every_approval_its_request() -> None:
    for task in [*dag.tasks, *backfill.tasks]:
        callbacks = task.partial_kwargs["on_failure_callback"] if task.is_mapped else task.on_failure_callback
        assert [type(callback) for callback in callbacks] == [Failed], task.task_id
    approvals = [task for task in dag.tasks if task.task_id.endswith("approve")]
    assert [type(task.notifiers) for task in approvals] == [list, list]
    assert all([type(notifier) for notifier in task.notifiers] == [ApprovalNeeded] for task in approvals)
