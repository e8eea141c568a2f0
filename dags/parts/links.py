"""Links from a task to what shows it elsewhere: the page of its run, Spark's history server, TensorBoard.

The environment tells the addresses: `CRAWL2CHAT_WEB_URL`, `CRAWL2CHAT_SPARK_UI_URL`, `CRAWL2CHAT_TENSORBOARD_URL`; the
last two links are there only where it does.
"""

from __future__ import annotations

import os
from typing import Any

from airflow.sdk import BaseOperatorLink

from pipeline import artifact


def web_url() -> str:
    """Where the pages of the runs are."""
    return os.environ.get("CRAWL2CHAT_WEB_URL", "http://127.0.0.1:8090").rstrip("/")


class Page(BaseOperatorLink):  # type: ignore[misc]
    """The page of the run: live while it goes, the report afterwards."""

    name = "Live and report"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """Its address."""
        return f"{web_url()}/runs/{artifact.run_name(ti_key.run_id)}"


class SparkUi(BaseOperatorLink):  # type: ignore[misc]
    """Spark's history server, or the master's page."""

    name = "Spark"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """Its address."""
        return os.environ["CRAWL2CHAT_SPARK_UI_URL"]


class TensorBoard(BaseOperatorLink):  # type: ignore[misc]
    """The curves of training."""

    name = "TensorBoard"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """Its address."""
        return os.environ["CRAWL2CHAT_TENSORBOARD_URL"]


Links = tuple[BaseOperatorLink, ...]
PAGE: Links = (Page(),)
SPARK: Links = (*PAGE, SparkUi()) if "CRAWL2CHAT_SPARK_UI_URL" in os.environ else PAGE
TRAINING: Links = (*PAGE, TensorBoard()) if "CRAWL2CHAT_TENSORBOARD_URL" in os.environ else PAGE


def show(operator: Any, context: Any) -> None:
    """Tell the links of a task as it begins; Airflow itself tells them at its end only."""
    task = context["ti"]
    for link in operator.operator_extra_links:
        task.xcom_push(key=link.xcom_key, value=link.get_link(operator, ti_key=task))
