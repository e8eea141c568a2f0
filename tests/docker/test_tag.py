"""The tag of images: it names version and commit, and no two states of the code have the same."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository with one commit, which makes its tags as this one does."""
    for file in ("Makefile", "pyproject.toml", "docker/tag.sh", "docker/Dockerfile"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / file, tmp_path / file)
    git(tmp_path, "init", "-q")
    commit(tmp_path)
    return tmp_path


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def commit(folder: Path) -> None:
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "one", "--no-verify")


def tag(folder: Path, *options: str) -> str:
    result = subprocess.run(["make", "-s", "tag", *options], cwd=folder, check=True, capture_output=True, text=True)
    return result.stdout.strip()


def test_a_tag_names_version_and_commit(project: Path) -> None:
    assert tag(project) == f"0.1.0-{git(project, 'rev-parse', '--short=12', 'HEAD')}"


def test_no_two_states_of_the_code_have_the_same(project: Path) -> None:
    seen = [tag(project)]
    for text in ("a", "b"):
        (project / "pipeline.py").write_text(text)  # first untracked
        seen.append(tag(project))
    git(project, "add", "pipeline.py")
    (project / "pyproject.toml").write_text((project / "pyproject.toml").read_text() + "\n")
    seen.append(tag(project))
    commit(project)
    seen.append(tag(project))
    assert len(set(seen)) == len(seen)
    assert [("-dirty." in one) for one in seen] == [False, True, True, True, False]
    assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", one) for one in seen)


def test_images_for_gpus_have_a_name_of_their_own(project: Path) -> None:
    assert tag(project, "TORCH=cu128") == f"{tag(project)}-cu128"
    assert tag(project, "TAG=mine") == "mine"


def test_a_release_in_another_repository_has_its_version_alone(project: Path) -> None:
    inner = project / "unpacked"
    inner.mkdir()
    for file in ("Makefile", "pyproject.toml", "docker"):
        (shutil.copytree if (project / file).is_dir() else shutil.copy)(project / file, inner / file)
    assert tag(inner) == "0.1.0"


def recorded(project: Path, *arguments: str) -> list[str]:
    """The calls of `docker` that a target makes."""
    programs = project / "programs"
    programs.mkdir()
    (programs / "docker").write_text(f'#!/bin/bash\necho "$@" >>{project}/calls\n')
    (programs / "docker").chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    subprocess.run(["make", "-s", *arguments], cwd=project, check=True, capture_output=True, env=environment)
    return (project / "calls").read_text().splitlines()


def test_images_are_built_pushed_and_started_under_that_tag(project: Path) -> None:
    (project / ".gitignore").write_text("docker/.env\nprograms\ncalls\n")
    commit(project)
    (project / "docker/.env").write_text("SECRET=x\nTAG=0.0.9-old\n")
    wanted = tag(project)
    calls = recorded(project, "images", "push", "REGISTRY=registry.example.org/ml")
    images = [f"registry.example.org/ml/crawl2chat-{name}:{wanted}" for name in ("spark", "training", "airflow", "s3")]
    assert [call.split()[call.split().index("--tag") + 1] for call in calls if call.startswith("build")] == images
    assert [call.removeprefix("push ") for call in calls if call.startswith("push")] == images[:3]
    assert (project / "docker/.env").read_text() == f"SECRET=x\nTAG={wanted}\n"


def test_a_push_without_a_registry_is_refused(project: Path) -> None:
    result = subprocess.run(["make", "-s", "push"], cwd=project, capture_output=True, text=True, check=False)
    assert result.returncode and "REGISTRY=registry.example.org/ml" in result.stderr
