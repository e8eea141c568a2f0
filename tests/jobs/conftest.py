"""One Spark session for all tests of the jobs."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from jobs import extract, filter
from jobs.stage import session
from pipeline import recipe
from pipeline.artifact import Published
from pipeline.command import Job
from pipeline.storage import Storage
from tests.jobs.crawl_server import server  # noqa: F401

logging.getLogger("py4j").setLevel(logging.WARNING)  # it writes when the session ends, to streams closed by then
REPOSITORY = Path(__file__).parents[2]
SAMPLE = REPOSITORY / "tests/data/sample"


@pytest.fixture(scope="session")
def spark() -> Iterator[Any]:
    made = session.spark("tests")
    yield made
    made.stop()


def share(spark: Any, patch: pytest.MonkeyPatch) -> None:
    """Stages use this session and leave it open; the working folder is the repository."""
    patch.chdir(REPOSITORY)
    patch.setattr(session, "spark", lambda name: spark)
    patch.setattr(spark, "stop", lambda: None)


@contextmanager
def sharing(spark: Any) -> Iterator[None]:
    """As `share`, within the block: for fixtures of a wider scope than a test's."""
    with pytest.MonkeyPatch.context() as patch:
        share(spark, patch)
        yield


@pytest.fixture(scope="session")
def short(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A crawl that is soon read: of each file of the sample its first forty responses."""
    offsets: dict[str, list[int]] = {}
    for line in (SAMPLE / "truth.jsonl").read_text().splitlines():
        told = json.loads(line)
        offsets.setdefault(told["file"], []).append(told["offset"])
    folder, files = tmp_path_factory.mktemp("short"), []
    for name, found in sorted(offsets.items()):
        files.append(folder / name)
        files[-1].write_bytes((SAMPLE / name).read_bytes()[: sorted(found)[40]])
    return files


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, short: list[Path], spark: Any) -> tuple[Published, Published]:
    """extract and filter of the short crawl, made at once."""
    work = job(tmp_path_factory.mktemp("whole"), of(short))
    with sharing(spark):
        extracted = extract.run(work)
        assert extracted is not None
        return extracted, filter.run(work)


@pytest.fixture(autouse=True)
def _one_session(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    if "spark" in request.fixturenames:
        share(request.getfixturevalue("spark"), monkeypatch)


def of(files: Sequence[Path], **more: Any) -> dict[str, Any]:
    """Overrides of a recipe that read these archives."""
    return {"input.warcs": [str(file) for file in files], **more}


def job(root: Path, overrides: dict[str, Any] | None = None, run: str = "test") -> Job:
    """A job of the demo recipe on a root."""
    return Job(recipe.load("recipes/demo.yaml", overrides), Storage(root), run, [], False)
