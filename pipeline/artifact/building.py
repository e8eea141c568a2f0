"""An artifact in the making: opened by its fingerprint, committed part by part, published by its manifest."""

from __future__ import annotations

import json
import os
import resource
import socket
import time
from collections.abc import Container
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pipeline import version
from pipeline.artifact.artifact import (
    DOWNLOADS,
    MANIFEST,
    Content,
    Cost,
    Counts,
    File,
    Input,
    Manifest,
    Published,
    Stage,
    digest,
    is_published,
    read,
)
from pipeline.artifact.runs import Pointer, settled, write_pointer
from pipeline.errors import NotPublished, StageError
from pipeline.storage import Storage

SCHEMA_VERSION = 1


@dataclass
class Building:
    """An artifact in the making.

    Data files are written to `file(...)`, in the artifact's own folder: readers see them once the manifest lists them.
    """

    storage: Storage
    run: str
    pointer: Pointer
    content: Content
    cpu_before: float

    @property
    def work(self) -> str:
        """Folder for commits, checkpoints and metrics of this fingerprint."""
        return self.pointer.work

    @property
    def progress_folder(self) -> str:
        """Folder of the progress events of this fingerprint."""
        return self.pointer.progress_folder

    def file(self, path: str) -> str:
        """Name under which a file of the artifact is written."""
        return f"{self.pointer.folder}/{path}"

    def committed(self) -> list[str]:
        """Names of the committed parts; their records are not read."""
        folder = f"{self.work}/commits"
        return [name[len(folder) + 1 : -5] for name in self.storage.names(folder) if name.endswith(".json")]

    def commits(self, parts: Container[str] | None = None) -> dict[str, dict[str, Any]]:
        """The records of the committed parts, by name; with `parts`, of those only."""
        names = [name for name in self.committed() if parts is None or name in parts]
        with ThreadPoolExecutor(DOWNLOADS) as pool:  # a crawl has 90,000 parts, each a request where the root is remote
            records = pool.map(lambda name: json.loads(self.storage.read(f"{self.work}/commits/{name}.json")), names)
            return dict(zip(names, records, strict=True))

    def commit(self, part: str, record: dict[str, Any]) -> None:
        """Record that `part` is finished; its files must be written before."""
        commit(self.storage, self.work, part, record)

    def uncommit(self, part: str) -> None:
        """Forget that `part` is finished: the next attempt makes it again."""
        self.storage.remove(f"{self.work}/commits/{part}.json")

    def discard(self, folder: str) -> None:
        """Remove a folder of the work folder that holds text of pages: once it is published nothing reads it."""
        self.storage.remove_tree(f"{self.work}/{folder}")

    def restore(self, folder: str, *steps: str) -> None:
        """Where `folder` was discarded, and the artifact is to be made again: forget the parts that wrote it."""
        if not self.storage.names(f"{self.work}/{folder}"):
            for part in self.committed():
                if part.startswith(tuple(f"{step}-" for step in steps)):
                    self.uncommit(part)

    def publish(
        self,
        files: list[File],
        counts: Counts | None = None,
        numbers: dict[str, Any] | None = None,
        run_numbers: dict[str, Any] | None = None,
        cpu_seconds: float | None = None,
    ) -> Published:
        """Write the manifest, last. Where another process published the same meanwhile, its manifest stays.

        `numbers` are results that belong to the content; `run_numbers` (speeds, memory) vary from run to run.
        `cpu_seconds` of processes that are not children of this one are added to its own and its children's.
        Raises `StageError` where `counts` do not add up, `ArtifactError` where the other published other files.
        """
        if counts is not None:
            counts.check(self.content.stage)
        content = self.content.model_copy(
            update={"files": sorted(files, key=lambda f: f.path), "counts": counts, "numbers": numbers or {}}
        )
        cost = Cost(
            started=self.pointer.started,
            seconds=round(time.time() - self.pointer.started, 3),
            cpu_seconds=round(_cpu_seconds() - self.cpu_before + (cpu_seconds or 0.0), 3),
            host=socket.gethostname(),
            attempts=len(self.storage.names(f"{self.work}/attempts")),
            numbers=run_numbers or {},
            commit=version.commit(),
        )
        manifest = Manifest(content=content, content_hash=content.hash(), run=cost)
        name = f"{self.pointer.folder}/{MANIFEST}"
        first = self.storage.create(name, manifest.model_dump_json(indent=1).encode())
        published = read(self.storage, self.pointer.folder)
        if not first and published.manifest.content_hash != manifest.content_hash:
            published.verify()  # our files have replaced the other's: they must be the same bytes
        write_pointer(self.storage, self.run, settled(self.pointer, published, "published"))
        print(f"{self.pointer.name}: published {published.summary()}", flush=True)
        return published


def commit(storage: Storage, work: str, part: str, record: dict[str, Any]) -> None:
    """As `Building.commit`, for a worker that has only the name of the work folder."""
    storage.write(f"{work}/commits/{part}.json", json.dumps(record, sort_keys=True).encode())


def is_committed(storage: Storage, work: str, part: str) -> bool:
    """Whether `part` is committed, for code that has only the name of the work folder."""
    return storage.exists(f"{work}/commits/{part}.json")


def describe(storage: Storage, folder: str, path: str, rows: int) -> File:
    """The manifest entry of a file in `folder`. Raises `StageError` where it was not written."""
    name = f"{folder}/{path}"
    size = storage.size(name)
    if size is None:
        raise StageError(f"{storage.path(name)} was not written", "this is a defect of the stage: report it")
    return File(path=path, bytes=size, sha256=storage.sha256(name), rows=rows)


@dataclass(frozen=True)
class Identity:
    """All that decides what a stage makes: two artifacts with the same identity hold the same.

    `recipe`: what of the recipe decides the output, beside `seed`, as plain data. `assets`: sha256 by name of word
    lists, models and the like.
    """

    stage: Stage
    recipe: dict[str, Any]
    seed: int
    inputs: list[Input]
    partition: str = "all"
    assets: dict[str, str] = field(default_factory=dict)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of the hash of all this."""
        identifying = {
            "schema": SCHEMA_VERSION,
            "stage": self.stage.name,
            "version": self.stage.version,
            "partition": self.partition,
            "seed": self.seed,
            "recipe": self.recipe,
            "libraries": self.stage.installed(),
            "assets": self.assets,
            # Not `location`: the same bytes under another root are the same input. A WARC file's `content` begins with
            # its name, which is part of its documents' ids.
            "inputs": [(source.stage, source.content) for source in self.inputs],
        }
        return digest(identifying)[:16]

    @property
    def folder(self) -> str:
        """Folder of the artifact, below the root."""
        return f"{self.stage.name}/{self.partition}/{self.fingerprint}"

    @property
    def work(self) -> str:
        """Folder of commits, checkpoints and metrics, below the root."""
        return f"_work/{self.stage.name}/{self.fingerprint}"

    def content(self) -> Content:
        """The content of the manifest, as far as it is known before anything is made."""
        return Content(
            schema_version=SCHEMA_VERSION,
            stage=self.stage.name,
            stage_version=self.stage.version,
            partition=self.partition,
            fingerprint=self.fingerprint,
            seed=self.seed,
            recipe=self.recipe,
            libraries=self.stage.installed(),
            assets=self.assets,
            inputs=self.inputs,
            files=[],
            counts=None,
            numbers={},
        )


def start(
    storage: Storage,
    run: str,
    identity: Identity,
    *,
    name: str | None = None,
    force: bool = False,
    published_only: bool = False,
) -> Published | Building:
    """Start a stage of `run`: the published artifact (verified) if this was made before, else a `Building`.

    `name`: of its pointer, where a stage runs more than once in a run. With `force` what was published is made again
    from nothing. With `published_only` nothing is started: `NotPublished` is raised instead.
    """
    stage, folder, work = identity.stage.name, identity.folder, identity.work
    storage.check_writable()
    pointer = Pointer(
        name=name or stage,
        stage=stage,
        state="running",
        folder=folder,
        work=work,
        fingerprint=identity.fingerprint,
        content_hash="",
        started=time.time(),
        seconds=0.0,
    )
    if force:
        storage.remove(f"{folder}/{MANIFEST}")
        storage.remove_tree(work)
    elif is_published(storage, folder):
        published = read(storage, folder)
        published.verify()
        write_pointer(storage, run, settled(pointer, published, "reused"))
        print(f"{pointer.name}: already made ({folder}), verified; nothing to do", flush=True)
        return published
    elif published_only:
        raise NotPublished(f"{pointer.name} is not published: {folder} is not there", f"run {pointer.name}")
    write_pointer(storage, run, pointer)
    _count_attempt(storage, pointer, identity.inputs)
    return Building(storage, run, pointer, identity.content(), _cpu_seconds())


def _count_attempt(storage: Storage, pointer: Pointer, inputs: list[Input]) -> None:
    """Record one more attempt, and the artifacts it reads: `pipeline.gc` keeps those while the stage runs."""
    number = len(storage.names(f"{pointer.work}/attempts"))
    unique = os.urandom(3).hex()  # batches of a stage begin at the same time, and would count the same number
    record = {"started": pointer.started, "inputs": [source.location for source in inputs if source.fingerprint]}
    storage.write(f"{pointer.work}/attempts/{number:04d}-{unique}.json", json.dumps(record).encode())


def _cpu_seconds() -> float:
    own, children = os.times(), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.user + own.system + children.ru_utime + children.ru_stime
