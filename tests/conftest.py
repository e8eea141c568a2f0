"""Shared by all rooms: an S3 server on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from hypothesis import settings
from moto.server import ThreadedMotoServer
from xdist.scheduler import LoadScopeScheduling

# No deadline: a machine with other work to do is no defect. `make test-all` draws ten times as many examples.
settings.register_profile("test", deadline=None, max_examples=100)
settings.register_profile("all", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "test"))

# Tests of a group run in one process: the jobs share one Spark session, the whole runs one Airflow, the commands of the
# documentation one copy of the project, in which each finds what those before it made, and the containers one stack.
GROUPS = {
    "tests/jobs/": "spark",
    "tests/local/": "airflow",
    "tests/dags/test_dag_test.py": "airflow",
    "tests/docs/test_commands.py": "commands",
    "tests/docker/test_compose.py": "compose",
}


class ByGroup(LoadScopeScheduling):  # type: ignore[misc]
    """Of several processes (pytest-xdist) one runs all tests of a group; any other test goes where there is room."""

    def _split_scope(self, nodeid: str) -> str:
        return next((group for folder, group in GROUPS.items() if nodeid.startswith(folder)), nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByGroup:
    """pytest-xdist asks for it once, in the process that hands out the tests."""
    return ByGroup(config, log)


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URI of an empty bucket; the environment names its server."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in (
        ("AWS_ENDPOINT_URL", f"http://{host}:{port}"),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ):
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="crawl")
    yield "s3://crawl"
    server.stop()
