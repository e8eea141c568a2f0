"""A backup of an object store, as a tar stream, is what it was when it is loaded again."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from pathlib import Path

from pipeline.storage import Storage

ARCHIVE = Path(__file__).parents[2] / "docker" / "archive.py"
FILES = {"artifacts/filter/all/1/manifest.json": b"{}", "artifacts/filter/all/1/part.parquet": bytes(range(256)) * 9000}


def run(what: str, root: Path, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    environment = {"PYTHONPATH": str(ARCHIVE.parents[1])}
    command = [sys.executable, str(ARCHIVE), what, str(root)]
    return subprocess.run(command, input=given, capture_output=True, check=False, env=environment)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "one")
    for name, data in FILES.items():
        storage.write(name, data)
    saved = run("save", tmp_path / "one")
    assert saved.returncode == 0 and b"2 objects" in saved.stderr
    with tarfile.open(fileobj=io.BytesIO(saved.stdout)) as archive:
        assert archive.getnames() == sorted(FILES)
    loaded = run("load", tmp_path / "two", saved.stdout)
    assert loaded.returncode == 0, loaded.stderr
    other = Storage(tmp_path / "two")
    assert {name: other.read(name) for name in other.sizes("")} == FILES


def test_a_member_cannot_leave_the_root(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("../outside"))
    result = run("load", tmp_path / "root", out.getvalue())
    assert result.returncode != 0 and not (tmp_path / "outside").exists()


def test_a_folder_is_no_member(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        member = tarfile.TarInfo("folder")
        member.type = tarfile.DIRTYPE
        archive.addfile(member)
    result = run("load", tmp_path / "root", out.getvalue())
    assert result.returncode == 3 and b"folder is no file" in result.stderr
