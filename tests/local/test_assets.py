"""In a running Airflow, a corpus that is ready starts the model whose recipe names it; another corpus does not.

On the way a person approves and rejects, and extract is mapped over batches.
"""

from __future__ import annotations

import httpx
import pytest

from local.airflow import Installation, standalone
from local.client import DAGS
from local.web import served
from pipeline import artifact
from pipeline.storage import Storage
from tests.local import runs
from tests.local.runs import LONGEST, answer, ended, until

ASKS = {"approval.canary_warcs": 1, "approval.core_hours": 1e-6}


def triggered(airflow, dag: str) -> list[str]:
    return [run["dag_run_id"] for run in airflow.call("GET", f"dags/{dag}/dagRuns").json()["dag_runs"]]


@pytest.mark.slow
def test_a_corpus_starts_the_model_that_names_it(tmp_path, monkeypatch):
    root = tmp_path / "data"
    recipe, other = (runs.recipe(tmp_path, name, ASKS) for name in ("small", "other"))
    monkeypatch.setenv("CRAWL2CHAT_RECIPE", str(recipe))
    monkeypatch.setenv("CRAWL2CHAT_BATCH_FILES", "1")
    installation = Installation(runs.REPOSITORY, str(root), 8196, tmp_path / "airflow")
    with served(installation), standalone(installation, print, DAGS) as airflow:
        plugins = airflow.call("GET", "plugins").json()["plugins"]
        views = [view for plugin in plugins for view in plugin["external_views"]]
        assert [view["href"] for view in views] == [f"{installation.web_url}/runs/{{RUN_ID}}"]

        airflow.trigger("corpus", "first", {"root": str(root)})
        request = answer(airflow, "corpus", "first", "corpus.approve", "Approve")
        assert "core hours; more than 1e-06 needs approval" in request["subject"]
        assert "| WARC files | 2 |" in request["body"]
        assert ended(airflow, "corpus", "first") == "success"
        tasks = airflow.tasks("corpus", "first")
        assert sorted(task.index for task in tasks if task.name == "corpus.extract_batch") == [0, 1]
        assert {task.tries for task in tasks if task.name != "corpus.approve"} == {1}
        links = airflow.call("GET", "dags/corpus/dagRuns/first/taskInstances/corpus.filter/links").json()
        assert links["extra_links"] == {"Live and report": f"{installation.web_url}/runs/first"}

        (started_run,) = until(lambda: triggered(airflow, "model"))
        assert ended(airflow, "model", started_run) == "success"
        storage, name = Storage(root), artifact.run_name(started_run)
        assert artifact.of_run(storage, name, "evaluation-rl").content.counts is None
        assert artifact.pointer(storage, name, "shard").state == "reused"
        page = httpx.get(f"{installation.web_url}/runs/{started_run}", timeout=LONGEST).text
        assert "Reinforcement learning" in page

        events = airflow.call("GET", "assets/events").json()["asset_events"]
        by_asset = {event["name"]: event for event in events}
        corpus, model = by_asset["crawl2chat_corpus"], by_asset["crawl2chat_model"]
        assert corpus["partition_key"] == model["partition_key"] == "small"
        assert corpus["extra"]["documents"] > 100
        assert model["extra"]["bits_per_byte"] > 0

        airflow.trigger("corpus", "second", {"root": str(root), "recipe": str(other)})
        answer(airflow, "corpus", "second", "corpus.approve", "Reject")
        assert ended(airflow, "corpus", "second") == "failed"

        airflow.trigger("corpus", "third", {"root": str(root), "recipe": str(other), "approval.core_hours": 1.0})
        assert ended(airflow, "corpus", "third") == "success"
        (skipped,) = until(lambda: [run for run in triggered(airflow, "model") if run != started_run])
        assert ended(airflow, "model", skipped) == "success"
        assert {task.state for task in airflow.tasks("model", skipped)} == {"skipped"}
