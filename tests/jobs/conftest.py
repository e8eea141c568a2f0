"""One Spark session for all tests of the jobs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs import extract, filter, session
from pipeline import recipe
from pipeline.artifact import Published
from pipeline.storage import Storage
from tests.jobs.crawl_server import server  # noqa: F401

logging.getLogger("py4j").setLevel(logging.WARNING)  # it writes when the session ends, to streams closed by then
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def spark() -> Iterator[Any]:
    made = session.spark("tests")
    yield made
    made.stop()


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, spark: Any) -> tuple[Published, Published]:
    """extract and filter of the sample, made at once."""
    patch = pytest.MonkeyPatch()
    patch.setattr("jobs.session.spark", lambda name: spark)
    patch.setattr(spark, "stop", lambda: None)
    work = job(tmp_path_factory.mktemp("whole"))
    made = extract.run(work)
    assert made is not None
    found = made, filter.run(work)
    patch.undo()
    return found


@pytest.fixture(autouse=True)
def _one_session(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages under test use the one session and leave it open; the working folder is the repository."""
    monkeypatch.chdir(REPOSITORY)
    if "spark" in request.fixturenames:
        made = request.getfixturevalue("spark")
        monkeypatch.setattr(session, "spark", lambda name: made)
        monkeypatch.setattr(made, "stop", lambda: None)


def job(root: Path, overrides: dict[str, Any] | None = None, run: str = "test") -> session.Job:
    """A job of the demo recipe on a root."""
    return session.Job(recipe.load("recipes/demo.yaml", overrides), Storage(root), run, [], False)
