"""An error that a stage prints is an error in Airflow's log, and what surrounds it is none."""

from __future__ import annotations

import logging
import os
import re

import pytest

from dags.parts import levels
from dags.parts.operators import SparkStage
from dags.parts.retries import StageFailed
from pipeline.stages import STEPS
from tests.dags.test_crawl_to_chat import CONTEXT, arguments, process_stage

INFO, WARNING, ERROR = logging.INFO, logging.WARNING, logging.ERROR
LINES = [
    (INFO, "26/11/30 20:39:55 INFO SparkContext: Running Spark version 4.3.0"),
    (WARNING, "26/11/30 20:39:56 WARN NativeCodeLoader: Unable to load native-hadoop library"),
    (ERROR, "26/11/30 20:39:57 ERROR TaskSchedulerImpl: Lost executor 3"),
    (WARNING, "warning: 2 of 3 take-down entries name no document: a, b"),
    (INFO, "extract: 100 % of errors: none"),
    (ERROR, "error: recipes/x.yaml:3: seed: missing"),
    (ERROR, "recipes/x.yaml:9: rl.steps: must be 1 or more"),
    (ERROR, "-> correct the keys above"),
    (INFO, "what comes after it"),
    (ERROR, "Traceback (most recent call last):"),
    (ERROR, 'File "/opt/jobs/extract.py", line 300, in <module>'),
    (ERROR, "errors.run(main)"),
    (ERROR, "raise ValueError('x: y')"),
    (ERROR, "pyarrow.lib.ArrowInvalid: no such column"),
    (INFO, "and after that"),
]


@pytest.mark.parametrize("indent", ["", "  "])
def test_the_level_of_each_line(indent: str) -> None:
    of = levels.Levels()
    assert [(of(f"{indent}{line}"), line) for _, line in LINES] == LINES


def test_an_error_without_an_end_does_not_colour_the_rest() -> None:
    of = levels.Levels()
    assert of("error: of another program") == ERROR
    found = [of("line") for _ in range(1000)]
    assert found[:10] == [ERROR] * 10 and found[-500:] == [INFO] * 500


FAILS = "print('100 %s done'); print('error: no WARC file matches x\\n  -> check the path'); raise SystemExit(3)"


def logged(output: str, level: str) -> list[str]:
    """The lines of this level in what structlog printed."""
    return [line.strip() for line in re.findall(rf"\[{level} *\] (.*?) +\[airflow\.task", output)]


def test_a_process_logs_its_error_as_one(tmp_path, capsys) -> None:
    with pytest.raises(StageFailed):
        process_stage(FAILS, tmp_path).execute(CONTEXT)
    output = capsys.readouterr().out
    assert logged(output, "error") == ["error: no WARC file matches x", "-> check the path"]
    assert "100 %s done" in logged(output, "info")


def test_spark_submit_logs_its_error_as_one(tmp_path, monkeypatch, capsys) -> None:
    program = tmp_path / "bin" / "spark-submit"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho '100 %s done'; echo 'error: no file x'; echo '  -> check the path'; exit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("AIRFLOW_CONN_SPARK_DEFAULT", '{"conn_type": "spark", "host": "local[1]"}')
    task = SparkStage(task_id="t", step=STEPS["extract"])
    task.application_args = arguments(tmp_path)
    with pytest.raises(StageFailed):
        task.execute(CONTEXT)
    output = capsys.readouterr().out
    assert logged(output, "error") == ["error: no file x", "-> check the path"]
    assert "100 %s done" in logged(output, "info")
