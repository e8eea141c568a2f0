"""Messages to people: a task failed for good, or a run waits for an approval.

They go where the connection `crawl2chat_alerts` says; without one there are none. Its type `smtp` is a mail to the
addresses `to` of its extra; any other a POST of `{"text": …}` to its host, with its password as the last part of the
path, as incoming webhooks of Slack and Mattermost take it.
"""

from __future__ import annotations

import html
from typing import Any

import httpx
from airflow.exceptions import AirflowNotFoundException
from airflow.sdk import BaseHook, BaseNotifier

from dags.parts.links import web_url
from pipeline import artifact

CONNECTION = "crawl2chat_alerts"
LONGEST = 2000  # characters of an error; the log has all of it
TIMEOUT = 20.0  # seconds


class Alert(BaseNotifier):  # type: ignore[misc]
    """A callback of a task. A message that cannot be sent is a warning in the log: the task goes on as without it."""

    def notify(self, context: Any) -> None:
        """Send it; does nothing without the connection."""
        try:
            connection = BaseHook.get_connection(CONNECTION)
        except AirflowNotFoundException:
            return
        try:
            task = context["ti"]
            links = f"{web_url()}/runs/{artifact.run_name(task.run_id)}\n{task.log_url}"
            text = f"{task.dag_id}, run {task.run_id}\n{self.details(context)}\n{links}"
            send(connection, f"crawl2chat: {self.event(context)}", text, context)
        except Exception as error:  # a password may be part of the URL in its message
            self.log.warning("no message by the connection %s: %s", CONNECTION, type(error).__name__)

    def event(self, context: Any) -> str:
        """What happened, in one line."""
        raise NotImplementedError

    def details(self, context: Any) -> str:
        """What a person needs to know of it."""
        raise NotImplementedError


class Failed(Alert):
    """The task failed, and is not tried again."""

    def event(self, context: Any) -> str:
        """See `Alert`."""
        return f"{context['ti'].task_id} failed"

    def details(self, context: Any) -> str:
        """See `Alert`."""
        return str(context.get("exception") or "it was killed, or its worker is gone")[:LONGEST]


class ApprovalNeeded(Alert):
    """The task waits for a person, on the page Required Actions."""

    def event(self, context: Any) -> str:
        """See `Alert`."""
        return f"{context['ti'].task_id} waits for an approval"

    def details(self, context: Any) -> str:
        """See `Alert`."""
        return f"{context['task'].subject}\n{context['task'].body}"


def send(connection: Any, subject: str, text: str, context: Any) -> None:
    """Send a message by a connection of Airflow."""
    if connection.conn_type == "smtp":
        from airflow.providers.smtp.notifications.smtp import SmtpNotifier

        body = f"<pre>{html.escape(text)}</pre>"
        to = connection.extra_dejson["to"]
        SmtpNotifier(to, subject=subject, html_content=body, smtp_conn_id=CONNECTION).notify(context)
        return
    url = connection.host if "://" in connection.host else f"https://{connection.host}"
    url = "/".join(part for part in (url.rstrip("/"), connection.password) if part)
    httpx.post(url, json={"text": f"*{subject}*\n{text}"}, timeout=TIMEOUT).raise_for_status()
