"""What Airflow's interface shows of ours: the page of a run, as a tab of the DAG run.

The page is the web application's (`web/serve.py`, a process of its own); the tab only frames its address.
"""

from __future__ import annotations

from typing import Any, ClassVar

from airflow.plugins_manager import AirflowPlugin

from dags.parts.links import web_url


class Pages(AirflowPlugin):  # type: ignore[misc]
    """The tab."""

    name = "crawl2chat"
    external_views: ClassVar[list[Any]] = [
        {
            "name": "Live and report",
            "href": f"{web_url()}/runs/{{RUN_ID}}",
            "destination": "dag_run",
            "url_route": "crawl2chat",
        }
    ]
