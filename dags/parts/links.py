"""Links from a task to pages outside Airflow: the page of its run, Spark's history server, TensorBoard.

Their addresses are the environment variables `CRAWL2CHAT_WEB_URL`, `CRAWL2CHAT_SPARK_UI_URL` and
`CRAWL2CHAT_TENSORBOARD_URL`; without the latter two, there is no link to Spark or TensorBoard.
"""

from __future__ import annotations

import os
from typing import Any

from airflow.sdk import BaseOperatorLink

from pipeline import artifact


def web_url() -> str:
    """Address of the pages of the runs, without a slash at its end."""
    return os.environ.get("CRAWL2CHAT_WEB_URL", "http://127.0.0.1:8090").rstrip("/")


class Page(BaseOperatorLink):  # type: ignore[misc]
    """The page of the run: progress while it runs, the report afterwards."""

    name = "Live and report"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """See `BaseOperatorLink`."""
        return f"{web_url()}/runs/{artifact.run_name(ti_key.run_id)}"


class SparkUi(BaseOperatorLink):  # type: ignore[misc]
    """Spark's history server, or the master's page."""

    name = "Spark"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """See `BaseOperatorLink`."""
        return os.environ["CRAWL2CHAT_SPARK_UI_URL"]


class TensorBoard(BaseOperatorLink):  # type: ignore[misc]
    """Training curves."""

    name = "TensorBoard"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """See `BaseOperatorLink`."""
        return os.environ["CRAWL2CHAT_TENSORBOARD_URL"]


Links = tuple[BaseOperatorLink, ...]
PAGE: Links = (Page(),)
SPARK: Links = (*PAGE, SparkUi()) if "CRAWL2CHAT_SPARK_UI_URL" in os.environ else PAGE
TRAINING: Links = (*PAGE, TensorBoard()) if "CRAWL2CHAT_TENSORBOARD_URL" in os.environ else PAGE


def push(operator: Any, context: Any) -> None:
    """Make a task's links available when it begins; Airflow itself does so only when the task ends."""
    task = context["ti"]
    for link in operator.operator_extra_links:
        task.xcom_push(key=link.xcom_key, value=link.get_link(operator, ti_key=task))
