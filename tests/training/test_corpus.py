"""Sources of pretraining's tokens: damaged shards, mixtures, an object store."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import boto3
import pytest

from pipeline import artifact
from pipeline.artifact import Published
from pipeline.errors import ArtifactError, RecipeError
from pipeline.storage import Storage
from tests.training import support
from tests.training.pretraining import publish, small
from training import pretrain

QUICK = {"steps": 6, "evaluate_every": 6, "checkpoint_every": 6}


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[100] ^= 1  # an id of the same vocabulary: only the hash shows it
    path.write_bytes(data)


def test_a_shard_whose_hash_differs_is_never_learned_into_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small(tmp_path, **QUICK)
    shards = publish(tmp_path, path)
    damage(Path(shards.storage.path(shards.file("train-00001.bin"))))
    with pytest.raises(ArtifactError, match=r"train-00001\.bin is not the file that was published"):
        support.run(pretrain, tmp_path, path, monkeypatch)
    assert not list(tmp_path.glob("pretrain/**/manifest.json"))


def test_a_mixture_is_learned_from_and_another_tokenizer_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = publish(tmp_path, small(tmp_path, **QUICK))
    foreign = support.publish_shards(tmp_path, {"train-00000": [[1] * 900]}, other.content.numbers["vocabulary"])
    data = support.demo(64)
    data["tokenizer"]["vocabulary"] = 512
    data["shard"]["validation"] = 0.07  # another fingerprint
    section = data["pretrain"] | QUICK | {"window": 32, "batch": 8, "prompts": ["the cat"], "mix": {other.folder: 0.25}}
    data["pretrain"] = section
    path = support.write(data, tmp_path)
    own = publish(tmp_path, path)
    assert own.folder != other.folder
    support.run(pretrain, tmp_path, path, monkeypatch)
    inputs = support.artifact_of(tmp_path, "pretrain").content.inputs
    assert {source.location for source in inputs} >= {own.folder, other.folder}

    # Refused: shards of another tokenizer, shares that leave nothing, a damaged file of the other artifact.
    data["pretrain"] = section | {"mix": {foreign.folder: 0.25}}
    with pytest.raises(ArtifactError, match="made by tokenizer 0000"):
        support.run(pretrain, tmp_path, support.write(data, tmp_path), monkeypatch)
    data["pretrain"] = section | {"mix": {foreign.folder: 1.0}}
    with pytest.raises(RecipeError, match="leave nothing for this run"):
        support.run(pretrain, tmp_path, support.write(data, tmp_path), monkeypatch)
    data["pretrain"] = section | {"steps": 5}
    damage(Path(other.storage.path(other.file("train-00001.bin"))))
    with pytest.raises(ArtifactError, match=r"train-00001\.bin is not the file that was published"):
        support.run(pretrain, tmp_path, support.write(data, tmp_path), monkeypatch)


def upload(root: Path, folders: tuple[str, ...]) -> None:
    """Copy what lies below these folders, and their pointers, into the bucket."""
    client = boto3.client("s3")
    for file in sorted(root.rglob("*")):
        name = str(file.relative_to(root))
        if file.is_file() and name.removeprefix("runs/demo/").startswith(folders):
            client.put_object(Bucket="crawl", Key=name, Body=file.read_bytes())


def copy(root: str, folder: str) -> None:
    """One of several processes that copy the shards to the cache at the same time."""
    artifact.read(Storage(root), folder).on_disk(".bin", ".idx")


def test_a_remote_root_is_copied_once_checked_and_learned_from(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small(tmp_path, **QUICK)
    local = publish(tmp_path / "root", path)
    support.run(pretrain, tmp_path / "root", path, monkeypatch)
    metrics = support.rows(support.artifact_of(tmp_path / "root", "pretrain"))
    upload(tmp_path / "root", ("tokenizer", "shard"))
    monkeypatch.setenv("CRAWL2CHAT_CACHE", str(tmp_path / "cache"))
    remote = artifact.read(Storage(s3), local.folder)

    # Three processes at once, as the ranks of a machine: the cache holds the files once, whole.
    processes = [multiprocessing.get_context("spawn").Process(target=copy, args=(s3, local.folder)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    folder = tmp_path / "cache" / local.manifest.content_hash
    names = {file.path for file in local.content.files if file.path.endswith((".bin", ".idx"))}
    assert {file.name for file in folder.iterdir()} - {".lock"} == names
    assert all((folder / name).read_bytes() == local.storage.read(local.file(name)) for name in names)
    # A later call copies nothing.
    before = {name: (folder / name).stat().st_mtime_ns for name in names}
    assert remote.on_disk(".bin", ".idx") == folder
    assert before == {name: (folder / name).stat().st_mtime_ns for name in names}

    support.run(pretrain, s3, path, monkeypatch)  # type: ignore[arg-type]
    assert support.rows(artifact.of_run(Storage(s3), "demo", "pretrain")) == metrics


def test_a_remote_file_that_changed_is_refused(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local: Published = support.publish_shards(tmp_path / "root", {"train-00000": [[1, 2, 3] * 300]})
    damage(Path(local.storage.path(local.file("train-00000.bin"))))
    upload(tmp_path / "root", ("shard",))
    monkeypatch.setenv("CRAWL2CHAT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ArtifactError, match=r"s3://crawl/.*train-00000\.bin is not the file that was published"):
        artifact.read(Storage(s3), local.folder).on_disk(".bin")
    assert not list((tmp_path / "cache").rglob("*.bin*"))
