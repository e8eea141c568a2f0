"""Secrets of the environment and of connections stay there: planted ones are searched in all outputs of a run."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dags.corpus import dag as corpus
from dags.model import dag as model
from dags.parts import operators, tasks
from jobs.stage.session import SMALL_JVM
from tests.dags.support import task_of
from tests.dags.test_crawl_to_chat import rendered

SAMPLE = Path(__file__).parents[1] / "data/sample/CC-SAMPLE-00004.warc.gz"
ENVIRONMENT = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    *("CRAWL2CHAT_WEB_PASSWORD", "AIRFLOW__API_AUTH__JWT_SECRET", "HF_TOKEN"),
)
PLANTED = {name: f"planted-{name.lower()}-4d1f" for name in (*ENVIRONMENT, "login", "password", "extra")}


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Secrets wherever a user may put them; a Spark that keeps an event log. The folder of that log."""
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, PLANTED[name])
    extra = {"token": PLANTED["extra"], "ranks": 2, "options": ["--zero-stage", 1]}
    for name, kind in (("SPARK", "spark"), ("DEEPSPEED", "deepspeed")):
        connection = {"conn_type": kind, "host": "local[2]", "extra": extra}
        connection |= {"login": PLANTED["login"], "password": PLANTED["password"]}
        monkeypatch.setenv(f"AIRFLOW_CONN_{name}_DEFAULT", json.dumps(connection))
    events, conf = tmp_path / "events", tmp_path / "conf"
    events.mkdir()
    conf.mkdir()
    conf.joinpath("spark-defaults.conf").write_text(
        f"spark.eventLog.enabled true\nspark.eventLog.dir file://{events}\nspark.eventLog.compress false\n"
    )
    monkeypatch.setenv("SPARK_CONF_DIR", str(conf))
    monkeypatch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
    monkeypatch.setenv("SPARK_SUBMIT_OPTS", SMALL_JVM)
    return events


def leaked(data: bytes | str) -> list[str]:
    """The names of the secrets that are in this."""
    data = data.encode() if isinstance(data, str) else data
    return [name for name, value in PLANTED.items() if value.encode() in data]


@contextmanager
def watched() -> Iterator[dict[str, bytes]]:
    """Environments by command line, of all processes of this user while the block runs."""
    seen: dict[str, bytes] = {}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    if command not in seen or not seen[command]:
                        seen[command] = (process / "environ").read_bytes()
                except OSError:
                    continue

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def place(root: Path) -> dict[str, str]:
    params = {"recipe": "recipes/demo.yaml", "root": str(root), "warcs": [str(SAMPLE)], "force": False}
    where: dict[str, str] = tasks.resolve.function(params, "manual__2026-01-01T00:00:00+00:00", task_of(corpus))
    return where


def test_no_template_and_no_command_line_holds_a_secret(planted: Path) -> None:
    for dag in (corpus, model):
        for task in dag.tasks:
            if not hasattr(task, "application_args") and not hasattr(task, "arguments"):
                continue
            ready = rendered(task)
            fields = {name: getattr(ready, name) for name in ready.template_fields}
            assert leaked(json.dumps(fields, default=str)) == [], task.task_id
            if isinstance(ready, operators.SparkStage):
                command = ready._get_hook()._build_spark_submit_command(ready.application)
            elif isinstance(ready, operators.ProcessStage):
                command = ready.command()
            else:  # an approval, which starts nothing
                continue
            assert leaked(" ".join(command)) == [], task.task_id
            assert len(command) > 5
    for dag in (corpus, model):
        assert leaked(json.dumps({key: param.dump() for key, param in dag.params.items()}, default=str)) == []


@pytest.mark.slow
def test_a_run_leaves_no_secret_behind(
    planted: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """A Spark stage by `spark-submit` and a stage as a process: logs, event log, command lines, and every file."""
    caplog.set_level(logging.DEBUG)
    root = tmp_path / "root"
    where = place(root)
    assert leaked(json.dumps(where)) == []
    pushed: list[str] = []
    instance = SimpleNamespace(run_id="one", xcom_push=lambda key, value: pushed.append(f"{key} {value}"))
    with watched() as seen:
        for task in (corpus.get_task("corpus.extract"), corpus.get_task("report")):
            ready = ready_for(task, where)
            ready.execute({"ti": instance})
    assert len(pushed) >= 2 and leaked("\n".join(pushed)) == []
    assert any("jobs/extract.py" in line and leaked(environment) for line, environment in seen.items())
    lines = [line for line in seen if "extract.py" in line or "web.report" in line]
    assert len(lines) >= 3 and not [line for line in seen if leaked(line)]

    files = [path for path in (*root.rglob("*"), *planted.rglob("*")) if path.is_file()]
    kinds = {path.name for path in files}
    assert {"manifest.json", "recipe.yaml", "extract.json", "report.html"} <= kinds
    assert any(path.parent.name == "progress" for path in files)
    (events,) = [path for path in planted.rglob("*") if path.is_file() and path.stat().st_size > 10_000]
    environment = json.loads(next(line for line in events.open() if "SparkListenerEnvironmentUpdate" in line))
    assert environment["Spark Properties"]["spark.app.name"] == "crawl2chat extract"
    for path in files:
        assert leaked(path.read_bytes()) == [], path
    output = capfd.readouterr()
    log = caplog.text + output.out + output.err
    (manifest,) = root.glob("extract/*/*/manifest.json")
    kept = json.loads(manifest.read_text())["content"]["counts"]["kept"]
    assert kept > 100 and f"{kept} kept" in log
    assert leaked(log) == []


def ready_for(task: Any, where: dict[str, str]) -> Any:
    """A task as Airflow would start it, on the place of this run."""
    ready = rendered(task)
    old = {"r.yaml": where["recipe"], "/data": where["root"], "one": where["run"]}
    for name in ("application_args", "arguments"):
        if hasattr(ready, name):
            setattr(ready, name, [old.get(part, part) for part in getattr(ready, name)])
    return ready
