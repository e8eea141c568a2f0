"""The commit that manifests name."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import artifact, version
from pipeline.artifact import Building, Identity, Stage
from pipeline.storage import Storage


@pytest.fixture(autouse=True)
def asked_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    version.commit.cache_clear()
    monkeypatch.delenv(version.COMMIT, raising=False)
    yield
    version.commit.cache_clear()


def git(folder: Path, *arguments: str) -> str:
    name = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    done = subprocess.run(["git", "-C", folder, *name, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_commit_is_git_s_and_a_changed_file_marks_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version, "PROJECT", tmp_path)
    assert version.commit() == "", "no repository, though the test's own may lie above"
    git(tmp_path, "init", "-q")
    (tmp_path / "file").write_text("1")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-q", "-m", "one")
    git(tmp_path, "tag", "-a", "v1", "-m", "a tag is no commit")
    version.commit.cache_clear()
    assert version.commit() == git(tmp_path, "rev-parse", "--short=12", "HEAD")
    (tmp_path / "file").write_text("2")
    version.commit.cache_clear()
    assert version.commit().endswith("+")


def test_an_image_has_it_in_the_environment_and_a_manifest_beside_its_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(commit: str, root: str) -> artifact.Published:
        version.commit.cache_clear()
        monkeypatch.setenv(version.COMMIT, commit)
        building = artifact.start(Storage(tmp_path / root), "run", Identity(Stage("extract", 1), {}, 1, []))
        assert isinstance(building, Building)
        return building.publish([])

    one, other = made("aaaaaaaaaaaa", "one"), made("bbbbbbbbbbbb", "other")
    assert (one.manifest.run.commit, other.manifest.run.commit) == ("aaaaaaaaaaaa", "bbbbbbbbbbbb")
    assert one.manifest.content_hash == other.manifest.content_hash
