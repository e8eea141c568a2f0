"""A tab in Airflow's interface that frames the page of a DAG run.

The page belongs to the web application (`web/serve.py`), which is a process of its own.
"""

from __future__ import annotations

from typing import Any, ClassVar

from airflow.plugins_manager import AirflowPlugin

from dags.parts.links import web_url


class Pages(AirflowPlugin):  # type: ignore[misc]
    """Registers the tab; an entry point of the project (pyproject.toml)."""

    name = "crawl2chat"
    external_views: ClassVar[list[Any]] = [
        {
            "name": "Live and report",
            "href": f"{web_url()}/runs/{{RUN_ID}}",
            "destination": "dag_run",
            "url_route": "crawl2chat",
        }
    ]
