"""spark-submit through Airflow's Spark provider, with two things that its operator has no parameter for.

The folder and the parent-death signal of the process must be set, and its exit code decides about a retry (`retries`).
This uses private members of the provider, as they are in version 6.3.4 (a test refuses any other): `execute` calls
`_get_hook` only while `_hook` is None, `hook.submit` passes keyword arguments on to `subprocess.Popen` and keeps the
process in `_submit_sp`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.sdk.exceptions import AirflowException

from dags.parts.retries import StageFailed

PROVIDER, VERSION = "apache-airflow-providers-apache-spark", "6.3.4"


def submit(operator: SparkSubmitOperator, context: Any, stage: str, **popen: Any) -> None:
    """Run `spark-submit` with these options of `subprocess.Popen`. Raises `StageFailed` with its exit code."""
    hook = operator._hook = operator._get_hook()
    hook.submit = partial(hook.submit, **popen)
    try:
        SparkSubmitOperator.execute(operator, context)
    except AirflowException as error:
        process = hook._submit_sp
        raise StageFailed(stage, process.returncode if process else None) from error
