"""What a stage makes: `<root>/<stage>/<partition>/<fingerprint>/` with a `manifest.json`, written last.

The life of a stage:

    building = artifact.open_stage(storage, run, spec, recipe_section, inputs, force=False)
    if isinstance(building, Published):           # somebody made exactly this before: verified, nothing to do
        return
    for part in parts:
        if part not in building.committed():      # a kill costs one part
            ... storage.write(building.file(name), ...)
            building.commit(part, {...})
    building.publish(files, counts, numbers)

A *run* (`<root>/runs/<run>/`) ties the stages of one recipe together: `recipe.yaml` and a pointer a stage, by which
the next stage finds its input. Readers list files from the manifest, never from the folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import os
import re
import resource
import socket
import time
from collections.abc import Container, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

from pipeline.errors import ArtifactError, RecipeError, StageError, StorageError
from pipeline.storage import Storage

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
_DOWNLOADS = 8  # files at once: more connections only bring answers of "slow down"
_BLOCK = 1 << 20


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class File(_Frozen):
    """One file of an artifact; `rows` counts what it holds (documents, tokens, steps: the stage says)."""

    path: str
    bytes: int
    sha256: str
    rows: int

    @field_validator("path")
    @classmethod
    def _below(cls, path: str) -> str:
        """A manifest from elsewhere must not lead out of the folder into which its files are copied."""
        if "\0" in path or any(part in ("", ".", "..") for part in path.split("/")):
            raise ValueError(f"{path!r} is no path below an artifact")
        return path


class Input(_Frozen):
    """What a stage read: a published artifact, or a raw file (then `fingerprint` is empty).

    `content` identifies the bytes: an artifact's content hash, a file's sha256 or size and ETag.
    """

    stage: str
    location: str
    fingerprint: str
    content: str


class Counts(_Frozen):
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


class Content(_Frozen):
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


class Run(_Frozen):
    """The part of a manifest that is never hashed: what making it took."""

    started: float
    seconds: float
    cpu_seconds: float
    host: str
    attempts: int
    numbers: dict[str, Any]


class Manifest(_Frozen):
    """`manifest.json` of a published artifact."""

    content: Content
    content_hash: str
    run: Run


class Pointer(_Frozen):
    """`runs/<run>/<name>.json`: where the stage `name` of a run stands."""

    name: str
    stage: str
    state: str  # running | published | reused
    folder: str
    work: str
    fingerprint: str
    content_hash: str
    started: float
    seconds: float


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


def run_name(text: str) -> str:
    """A folder name for a run, from any id (Airflow's hold colons and pluses)."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "run"


@dataclass(frozen=True)
class Published:
    """A published artifact: its manifest and where it lies."""

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
        """Names (for the storage) of the files that the manifest lists, with this ending, in order."""
        return [self.file(f.path) for f in self.content.files if f.path.endswith(suffix)]

    def as_input(self) -> Input:
        """This artifact as the input of another."""
        return Input(
            stage=self.content.stage,
            location=self.folder,
            fingerprint=self.content.fingerprint,
            content=self.manifest.content_hash,
        )

    def on_disk(self, *suffixes: str) -> Path:
        """A folder of this machine with the files that end so (all, where no ending is given), to be mapped or opened.

        Of a remote root they are copied, once a machine, into `CRAWL2CHAT_CACHE` (default `~/.cache/crawl2chat`) below
        the content hash; what comes is checked against the manifest, or `ArtifactError`.
        """
        if self.storage.local:
            return self.storage.local_path(self.folder)
        cache = Path(os.environ.get("CRAWL2CHAT_CACHE") or Path.home() / ".cache" / "crawl2chat")
        folder = cache / self.manifest.content_hash
        folder.mkdir(parents=True, exist_ok=True)
        wanted = [file for file in self.content.files if not suffixes or file.path.endswith(suffixes)]
        with (folder / ".lock").open("w") as lock, ThreadPoolExecutor(_DOWNLOADS) as pool:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one process of a machine copies, the others find it done
            list(pool.map(lambda file: self._copy(file, folder / file.path), wanted))
        return folder

    def _copy(self, file: File, target: Path) -> None:
        """A file from a remote root, whole or not at all."""
        if target.exists() and target.stat().st_size == file.bytes:
            return
        digest, temporary = hashlib.sha256(), target.with_name(f"{target.name}.tmp")
        temporary.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self.storage.reading(self.file(file.path)) as source, temporary.open("wb") as stream:
                while block := source.read(_BLOCK):
                    digest.update(block)
                    stream.write(block)
            if digest.hexdigest() != file.sha256:
                raise _changed(self.storage.path(self.file(file.path)), "is not the file that was published")
            os.replace(temporary, target)
        except OSError as error:
            raise StorageError(f"{target} cannot be written: {error}", "make room, or set CRAWL2CHAT_CACHE") from error
        finally:
            temporary.unlink(missing_ok=True)

    def verify(self) -> None:
        """Raise `ArtifactError` where a file is missing or is not what the manifest says."""
        for listed in self.content.files:
            name = self.file(listed.path)
            size = self.storage.size(name)
            if size is None:
                raise _changed(self.storage.path(name), "is missing")
            if size != listed.bytes or self.storage.sha256(name) != listed.sha256:
                raise _changed(self.storage.path(name), "is not the file that was published")


def _changed(path: str, what: str) -> ArtifactError:
    return ArtifactError(f"{path} {what}", "restore the file, or rerun its stage with --force to make it again")


def read(storage: Storage, folder: str) -> Published:
    """The published artifact in `folder`; its manifest is checked against its own hash."""
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


@dataclass
class Building:
    """An artifact in the making. Data files go to `file(...)` at once; they count only once the manifest lists them."""

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
        return f"{self.work}/progress"

    def file(self, path: str) -> str:
        """Name under which a file of the artifact is written."""
        return f"{self.pointer.folder}/{path}"

    def committed(self) -> list[str]:
        """The parts that are finished, by name; their records are not read."""
        folder = f"{self.work}/commits"
        return [name[len(folder) + 1 : -5] for name in self.storage.names(folder) if name.endswith(".json")]

    def commits(self, parts: Container[str] | None = None) -> dict[str, dict[str, Any]]:
        """The records of what is finished, by part; with `parts`, of those only."""
        names = [name for name in self.committed() if parts is None or name in parts]
        with ThreadPoolExecutor(_DOWNLOADS) as pool:  # a crawl has 90,000, each a request where the root is remote
            records = pool.map(lambda name: json.loads(self.storage.read(f"{self.work}/commits/{name}.json")), names)
            return dict(zip(names, records, strict=True))

    def commit(self, part: str, record: dict[str, Any]) -> None:
        """Say that `part` is finished, after its files are written."""
        commit(self.storage, self.work, part, record)

    def publish(
        self,
        files: list[File],
        counts: Counts | None = None,
        numbers: dict[str, Any] | None = None,
        run_numbers: dict[str, Any] | None = None,
        cpu_seconds: float | None = None,
    ) -> Published:
        """Write the manifest, last. Loses a race quietly: the other made the same.

        `numbers` are results that belong to the content; `run_numbers` (speeds, memory) vary from run to run.
        `cpu_seconds`: of processes that are not children of this one, in addition to its own and its children's.
        """
        if counts is not None:
            counts.check(self.content.stage)
        content = self.content.model_copy(
            update={"files": sorted(files, key=lambda f: f.path), "counts": counts, "numbers": numbers or {}}
        )
        spent = Run(
            started=self.pointer.started,
            seconds=round(time.time() - self.pointer.started, 3),
            cpu_seconds=round(_cpu_seconds() - self.cpu_before + (cpu_seconds or 0.0), 3),
            host=socket.gethostname(),
            attempts=len(self.storage.names(f"{self.work}/attempts")),
            numbers=run_numbers or {},
        )
        manifest = Manifest(content=content, content_hash=content.hash(), run=spent)
        name = f"{self.pointer.folder}/{MANIFEST}"
        first = self.storage.create(name, manifest.model_dump_json(indent=1).encode())
        published = read(self.storage, self.pointer.folder)
        if not first and published.manifest.content_hash != manifest.content_hash:
            published.verify()  # our files lie where the other's did; the two should have been the same
        _point(self.storage, self.run, _pointer(self.pointer, published, "published"))
        return published


def is_committed(storage: Storage, work: str, part: str) -> bool:
    """Whether `part` is finished, for one who holds the folder only."""
    return storage.exists(f"{work}/commits/{part}.json")


def is_published(storage: Storage, folder: str) -> bool:
    """Whether `folder` holds a published artifact, which is not looked at."""
    return storage.exists(f"{folder}/{MANIFEST}")


def commit(storage: Storage, work: str, part: str, record: dict[str, Any]) -> None:
    """As `Building.commit`, for a worker that holds the folder only."""
    storage.write(f"{work}/commits/{part}.json", json.dumps(record, sort_keys=True).encode())


def describe(storage: Storage, folder: str, path: str, rows: int) -> File:
    """The manifest entry of a file that was written to `folder`."""
    name = f"{folder}/{path}"
    size = storage.size(name)
    if size is None:
        raise StageError(f"{storage.path(name)} was not written", "this is a defect of the stage: report it")
    return File(path=path, bytes=size, sha256=storage.sha256(name), rows=rows)


def fingerprint(
    stage: Stage,
    recipe: dict[str, Any],
    seed: int,
    inputs: list[Input],
    partition: str = "all",
    assets: dict[str, str] | None = None,
) -> str:
    """What identifies the artifact that `open_stage` opens for these; 16 hex digits."""
    identity = {
        "schema": SCHEMA_VERSION,
        "stage": stage.name,
        "version": stage.version,
        "partition": partition,
        "seed": seed,
        "recipe": recipe,
        "libraries": stage.installed(),
        "assets": assets or {},
        # Not `location`: the same bytes under another root are the same input. A raw file's content names its place.
        "inputs": [(i.stage, i.content) for i in inputs],
    }
    return digest(identity)[:16]


def folder_of(stage: Stage, fingerprint: str, partition: str = "all") -> str:
    """Where the artifact of this fingerprint lies, below the root."""
    return f"{stage.name}/{partition}/{fingerprint}"


def open_stage(
    storage: Storage,
    run: str,
    stage: Stage,
    recipe: dict[str, Any],
    seed: int,
    inputs: list[Input],
    *,
    name: str | None = None,
    partition: str = "all",
    assets: dict[str, str] | None = None,
    force: bool = False,
) -> Published | Building:
    """Start a stage of `run`: the published artifact (verified) if this was made before, else a `Building`.

    `recipe`: all of the recipe that decides the output, as plain data. `assets`: sha256 by name of word lists,
    models and the like. `name`: the pointer's, where a stage runs more than once in a run. With `force` what was
    published is made again from nothing.
    """
    found = fingerprint(stage, recipe, seed, inputs, partition, assets)
    folder, work = folder_of(stage, found, partition), f"_work/{stage.name}/{found}"
    storage.check_writable()
    pointer = Pointer(
        name=name or stage.name,
        stage=stage.name,
        state="running",
        folder=folder,
        work=work,
        fingerprint=found,
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
        _point(storage, run, _pointer(pointer, published, "reused"))
        print(f"{pointer.name}: already made ({folder}), verified; nothing to do", flush=True)
        return published
    _point(storage, run, pointer)
    attempt = len(storage.names(f"{work}/attempts"))
    begun = {"started": pointer.started, "inputs": [source.location for source in inputs if source.fingerprint]}
    unique = os.urandom(3).hex()  # batches of a stage begin at the same time
    storage.write(f"{work}/attempts/{attempt:04d}-{unique}.json", json.dumps(begun).encode())
    content = Content(
        schema_version=SCHEMA_VERSION,
        stage=stage.name,
        stage_version=stage.version,
        partition=partition,
        fingerprint=found,
        seed=seed,
        recipe=recipe,
        libraries=stage.installed(),
        assets=assets or {},
        inputs=inputs,
        files=[],
        counts=None,
        numbers={},
    )
    return Building(storage, run, pointer, content, _cpu_seconds())


def pointer(storage: Storage, run: str, name: str) -> Pointer | None:
    """Where the stage `name` of `run` stands, or None where it never started."""
    path = f"runs/{run}/{name}.json"
    return Pointer.model_validate_json(storage.read(path)) if storage.exists(path) else None


def adopt(storage: Storage, source: str, run: str, names: Sequence[str]) -> None:
    """Make what the stages `names` of run `source` published the base of `run`."""
    for name in names:
        of_run(storage, source, name)
        found = pointer(storage, source, name)
        if found and source != run:
            _point(storage, run, found.model_copy(update={"state": "reused"}))


def pointers(storage: Storage, name: str | None = None) -> dict[str, list[Pointer]]:
    """The pointers of every run that has any, by run; with `name`, those of that stage only."""
    found: dict[str, list[Pointer]] = {}
    for path in storage.names("runs"):
        if path.endswith(".json" if name is None else f"/{name}.json"):
            found.setdefault(path.split("/")[1], []).append(Pointer.model_validate_json(storage.read(path)))
    return found


def runs_with(storage: Storage, name: str, running: bool = False) -> list[str]:
    """The runs that have published their stage `name`, in the order in which they began it; with `running`, all."""
    found = [(one.started, run) for run, (one,) in pointers(storage, name).items() if running or one.state != "running"]
    return [run for _, run in sorted(found)]


def newest_run(storage: Storage, name: str) -> str:
    """The run that began its stage `name` last, of those that have published it."""
    if not (found := runs_with(storage, name)):
        raise ArtifactError(f"no run below {storage.root} has published {name}", f"run {name} first")
    return found[-1]


def of_run(storage: Storage, run: str, name: str, recipe: dict[str, Any] | None = None) -> Published:
    """The artifact that the stage `name` made in `run`, for the stage that reads it.

    With `recipe`, refuse one that was built from other settings than these.
    """
    found = pointer(storage, run, name)
    if found is None or found.state == "running":
        state = "did not finish" if found else "has not run"
        raise ArtifactError(f"stage {name} {state} in run {run!r} below {storage.root}", f"run {name} first")
    published = read(storage, found.folder)
    if recipe is not None and published.content.recipe != recipe:
        changed = sorted(k for k in recipe if published.content.recipe.get(k) != recipe[k])
        raise RecipeError(
            f"stage {name} of run {run!r} was built with other settings ({', '.join(changed)})",
            f"run {name} again with this recipe, or use another --run",
        )
    return published


def lineage(storage: Storage, published: Published) -> list[Published]:
    """All artifacts that `published` was made from, itself last, each once."""
    found: dict[str, Published] = {}

    def visit(artifact: Published) -> None:
        for source in artifact.content.inputs:
            if source.fingerprint and source.location not in found:
                visit(read(storage, source.location))
        found[artifact.folder] = artifact

    visit(published)
    return list(found.values())


def _pointer(started: Pointer, published: Published, state: str) -> Pointer:
    return started.model_copy(
        update={
            "state": state,
            "content_hash": published.manifest.content_hash,
            "seconds": round(time.time() - started.started, 3),
        }
    )


def _point(storage: Storage, run: str, to: Pointer) -> None:
    storage.write(f"runs/{run}/{to.name}.json", to.model_dump_json(indent=1).encode())


def _cpu_seconds() -> float:
    own, children = os.times(), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.user + own.system + children.ru_utime + children.ru_stime
