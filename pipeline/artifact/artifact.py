"""What a stage made: a folder with a `manifest.json`, and reading it again.

The manifest has two parts: `content`, whose hash is the artifact's, and `run`, which is never hashed. Readers
list files from the manifest, never from the folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

from pipeline.errors import ArtifactError, StageError, StorageError
from pipeline.storage import Storage

MANIFEST = "manifest.json"
DOWNLOADS = 8  # files at once: with more connections an object store only answers 503, "slow down"


class Frozen(BaseModel):
    """Base of what is written as JSON: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class File(Frozen):
    """One file of an artifact; `rows` counts what it holds: documents, tokens or steps, as its stage defines."""

    path: str
    bytes: int
    sha256: str
    rows: int

    @field_validator("path")
    @classmethod
    def _below(cls, path: str) -> str:
        """A manifest from elsewhere must not name a file outside the folder into which its files are copied."""
        if "\0" in path or any(part in ("", ".", "..") for part in path.split("/")):
            raise ValueError(f"{path!r} is no path below an artifact")
        return path


class Input(Frozen):
    """What a stage read: a published artifact, or a raw file (then `fingerprint` is empty).

    `content` identifies the bytes: an artifact's content hash, a file's sha256 or size and ETag.
    """

    stage: str
    location: str
    fingerprint: str
    content: str


class Counts(Frozen):
    """Documents (records, conversations) that came in, stayed, and left by reason: in = kept + sum of dropped."""

    in_: int
    kept: int
    dropped: dict[str, int]

    def check(self, stage: str) -> None:
        """Raise `StageError` where something was lost or doubled."""
        total = self.kept + sum(self.dropped.values())
        if self.in_ != total:
            raise StageError(
                f"{stage}: {self.in_} came in, but {self.kept} kept and {total - self.kept} dropped are accounted for",
                "this is a defect of the stage: keep the work folder and report it",
            )


class Content(Frozen):
    """The hashed part of a manifest: what was made, from what."""

    schema_version: int
    stage: str
    stage_version: int
    partition: str
    fingerprint: str
    seed: int
    recipe: dict[str, Any]
    libraries: dict[str, str]
    assets: dict[str, str]
    inputs: list[Input]
    files: list[File]
    counts: Counts | None
    numbers: dict[str, Any]

    def hash(self) -> str:
        """The artifact's content hash."""
        return digest(self.model_dump(mode="json"))


class Cost(Frozen):
    """The part of a manifest that is never hashed: what the artifact cost to make."""

    started: float
    seconds: float
    cpu_seconds: float
    host: str
    attempts: int
    numbers: dict[str, Any]
    commit: str = ""  # of the code that made it, see `pipeline.version`; manifests of earlier versions have none


class Manifest(Frozen):
    """`manifest.json` of a published artifact."""

    content: Content
    content_hash: str
    run: Cost


@dataclass(frozen=True)
class Stage:
    """What identifies the code of a stage. Raise `version` when the code changes what comes out.

    `libraries`: distribution names whose versions decide the output.
    """

    name: str
    version: int
    libraries: tuple[str, ...] = ()

    def installed(self) -> dict[str, str]:
        """The version of each library."""
        return {library: importlib.metadata.version(library) for library in self.libraries}


def digest(data: Any) -> str:
    """Sha256 of plain data, independent of key order."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Published:
    """A published artifact: its manifest, and its folder below the root."""

    storage: Storage
    folder: str
    manifest: Manifest

    @property
    def content(self) -> Content:
        """The hashed part of the manifest."""
        return self.manifest.content

    def file(self, path: str) -> str:
        """Name of a file of this artifact for its storage."""
        return f"{self.folder}/{path}"

    def files(self, suffix: str = "") -> list[str]:
        """Names, for the storage, of the files that end with `suffix`, in the order of the manifest."""
        return [self.file(file.path) for file in self.content.files if file.path.endswith(suffix)]

    def summary(self) -> str:
        """In one line: where it is, how many files, and what was dropped by reason."""
        line = f"{self.storage.path(self.folder)}, {len(self.content.files)} files"
        if counts := self.content.counts:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.dropped.items())) or "none"
            total = sum(counts.dropped.values())
            line += f"; {counts.in_:,} in = {counts.kept:,} kept + {total:,} dropped ({reasons})"
        return line

    def as_input(self) -> Input:
        """This artifact as the input of another."""
        return Input(
            stage=self.content.stage,
            location=self.folder,
            fingerprint=self.content.fingerprint,
            content=self.manifest.content_hash,
        )

    def on_disk(self, *suffixes: str) -> Path:
        """A folder of this machine that holds the files with these suffixes (all by default), to be mapped or opened.

        From a remote root they are copied once per machine, into `CRAWL2CHAT_CACHE` (default `~/.cache/crawl2chat`)
        below the content hash. Raises `ArtifactError` where a copy differs from the manifest.
        """
        if self.storage.local:
            return self.storage.local_path(self.folder)
        cache = Path(os.environ.get("CRAWL2CHAT_CACHE") or Path.home() / ".cache" / "crawl2chat")
        folder = cache / self.manifest.content_hash
        folder.mkdir(parents=True, exist_ok=True)
        wanted = [file for file in self.content.files if not suffixes or file.path.endswith(suffixes)]
        with (folder / ".lock").open("w") as lock, ThreadPoolExecutor(DOWNLOADS) as pool:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one process per machine copies; the others wait, then find the copies
            list(pool.map(lambda file: self._copy(file, folder / file.path), wanted))
        return folder

    def _copy(self, file: File, target: Path) -> None:
        """Copy a file from a remote root, whole or not at all."""
        if target.exists() and target.stat().st_size == file.bytes:
            return
        checksum, temporary = hashlib.sha256(), target.with_name(f"{target.name}.tmp")
        temporary.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as stream:
                for block in self.storage.blocks(self.file(file.path)):
                    checksum.update(block)
                    stream.write(block)
            if checksum.hexdigest() != file.sha256:
                raise _changed(self.storage.path(self.file(file.path)), "is not the file that was published")
            os.replace(temporary, target)
        except OSError as error:
            raise StorageError(f"{target} cannot be written: {error}", "make room, or set CRAWL2CHAT_CACHE") from error
        finally:
            temporary.unlink(missing_ok=True)

    def verify(self) -> None:
        """Raise `ArtifactError` where a file is missing or differs from the manifest."""
        for listed in self.content.files:
            name = self.file(listed.path)
            size = self.storage.size(name)
            if size is None:
                raise _changed(self.storage.path(name), "is missing")
            if size != listed.bytes or self.storage.sha256(name) != listed.sha256:
                raise _changed(self.storage.path(name), "is not the file that was published")


def _changed(path: str, difference: str) -> ArtifactError:
    return ArtifactError(f"{path} {difference}", "restore the file, or rerun its stage with --force to make it again")


def read(storage: Storage, folder: str) -> Published:
    """The published artifact in `folder`.

    Raises `ArtifactError` where there is none, and where the manifest's content does not have the hash it states.
    """
    name = f"{folder}/{MANIFEST}"
    if not is_published(storage, folder):
        raise ArtifactError(f"{storage.path(folder)} holds no published artifact", "run the stage that makes it")
    try:
        manifest = Manifest.model_validate_json(storage.read(name))
    except ValueError as error:
        raise ArtifactError(f"{storage.path(name)} is no manifest: {error}", "rerun its stage with --force") from error
    if manifest.content.hash() != manifest.content_hash:
        raise _changed(storage.path(name), "was edited after it was published")
    return Published(storage, folder, manifest)


def is_published(storage: Storage, folder: str) -> bool:
    """Whether `folder` holds a manifest; neither it nor the files are read."""
    return storage.exists(f"{folder}/{MANIFEST}")


def lineage(storage: Storage, published: Published, removed: list[str] | None = None) -> list[Published]:
    """All artifacts that `published` was made from, each once and after its own inputs, itself last.

    Raises `ArtifactError` where one was removed; with `removed`, its folder is appended to that instead.
    """
    artifacts: dict[str, Published] = {}

    def visit(artifact: Published) -> None:
        for source in artifact.content.inputs:
            if not source.fingerprint or source.location in artifacts:
                continue
            if removed is None or is_published(storage, source.location):
                visit(read(storage, source.location))
            elif source.location not in removed:
                removed.append(source.location)
        artifacts[artifact.folder] = artifact

    visit(published)
    return list(artifacts.values())
