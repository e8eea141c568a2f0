"""spark-submit through Airflow's Spark provider, with three things that its operator has no parameter for.

The folder and the parent-death signal of the process must be set, its exit code decides about a retry (`retries`), and
its lines have levels (`levels`).
This uses private members of the provider, as they are in version 6.3.4 (a test refuses any other): `execute` calls
`_get_hook` only while `_hook` is None, `hook.submit` passes keyword arguments on to `subprocess.Popen` and keeps the
process in `_submit_sp`, and the hook logs by `_log`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.sdk.exceptions import AirflowException

from dags.parts.levels import HookLog
from dags.parts.retries import StageFailed

PROVIDER, VERSION = "apache-airflow-providers-apache-spark", "6.3.4"


def submit(operator: SparkSubmitOperator, context: Any, stage: str, **popen: Any) -> None:
    """Run `spark-submit` with these options of `subprocess.Popen`. Raises `StageFailed` with its exit code."""
    hook = operator._hook = operator._get_hook()
    hook.submit = partial(hook.submit, **popen)
    hook._log = HookLog(hook.log)  # which logs the driver's output by `info`
    try:
        SparkSubmitOperator.execute(operator, context)
    except AirflowException as error:
        process = hook._submit_sp
        raise StageFailed(stage, process.returncode if process else None) from error
