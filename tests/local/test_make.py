"""`make clean` removes what took weeks to make only where somebody says so."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parents[2] / "Makefile"
OUTER_MAKE = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copy(MAKEFILE, tmp_path)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".crawl2chat/data").mkdir(parents=True)
    return tmp_path


def clean(project: Path, *options: str, typed: str | None = None) -> subprocess.CompletedProcess[str]:
    """`make clean`, with a terminal where something is `typed`."""
    theirs, ours = pty.openpty() if typed is not None else (-1, -1)
    if typed is not None:
        os.write(theirs, f"{typed}\n".encode())
    done = subprocess.run(
        ["make", "clean", *options],
        cwd=project,
        env={name: value for name, value in os.environ.items() if name not in OUTER_MAKE},
        stdin=subprocess.DEVNULL if typed is None else ours,
        capture_output=True,
        text=True,
        timeout=60,
    )
    for end in (theirs, ours) if typed is not None else ():
        os.close(end)
    return done


def test_without_a_terminal_it_is_refused_with_the_remedy(project: Path) -> None:
    done = clean(project)
    assert done.returncode != 0 and "make clean FORCE=1" in done.stderr
    assert (project / ".crawl2chat/data").is_dir() and (project / ".venv").is_dir()


@pytest.mark.parametrize(("typed", "removed"), [("", False), ("n", False), ("y", True), ("yes", True)])
def test_it_asks(typed: str, removed: bool, project: Path) -> None:
    done = clean(project, typed=typed)
    assert "of artifacts? [y/N]" in done.stderr
    assert (project / ".crawl2chat").exists() is (project / ".venv").exists() is not removed
    assert (done.returncode == 0) is removed


def test_force_removes_and_without_artifacts_nothing_is_asked(project: Path) -> None:
    assert clean(project, "FORCE=1").returncode == 0
    assert not (project / ".crawl2chat").exists() and not (project / ".venv").exists()
    (project / ".venv").mkdir()
    assert clean(project).returncode == 0
    assert not (project / ".venv").exists()
